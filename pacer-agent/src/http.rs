//! Serves `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::exit::Failure;
use crate::metrics::{Metrics, render};

/// Prometheus's text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Serves `metrics` at `address`, if there is one, until what it returns is
/// dropped.
///
/// # Errors
///
/// If the address cannot be listened on.
pub async fn serve_if(
    address: Option<&str>,
    metrics: &Arc<Metrics>,
) -> Result<JoinSet<()>, Failure> {
    serve(address, metrics.registry()).await
}

/// Serves what is in `registry`, likewise.
///
/// # Errors
///
/// As [`serve_if`].
pub async fn serve(address: Option<&str>, registry: &Registry) -> Result<JoinSet<()>, Failure> {
    let mut server = JoinSet::new();
    let Some(address) = address else {
        return Ok(server);
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::not_started(format!("--metrics: cannot listen on {address} ({error})"))
    })?;
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .with_state(registry.clone());
    server.spawn(async move {
        // It ends only with the task.
        let _ = axum::serve(listener, routes).await;
    });
    Ok(server)
}

async fn scrape(State(registry): State<Registry>) -> Response {
    match render(&registry) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
