//! Puts the eBPF object where `probe::object` includes it from. Building that
//! object needs a toolchain of its own, so `cargo xtask build` does it and names
//! it in `PACER_EBPF_OBJECT`; a plain `cargo build` embeds none.

use std::path::PathBuf;
use std::{env, fs};

const OBJECT: &str = "PACER_EBPF_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(pacer_ebpf)");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let Some(object) = env::var_os(OBJECT).filter(|path| !path.is_empty()) else {
        return;
    };
    let object = PathBuf::from(object);
    println!("cargo::rerun-if-changed={}", object.display());
    let out_dir = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let copy = PathBuf::from(out_dir).join("pacer-ebpf");
    if let Err(error) = fs::copy(&object, &copy) {
        println!("cargo::error={OBJECT}={}: {error}", object.display());
        return;
    }
    println!("cargo::rustc-cfg=pacer_ebpf");
}
