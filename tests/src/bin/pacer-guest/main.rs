//! What runs in the Linux guest, as its first process. The arguments say what
//! it does:
//!
//! - four numbers (MiB to fill, pages of the working set, pages a second,
//!   records a second): [`mod@heartbeat`];
//! - `disks SEED REQUESTS GRANULARITY DISKS`: [`load`] on that many disks;
//! - `flood SEED SECONDS THREADS DISKS`: [`flood`] on that many disks.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

mod block_device;
mod buffer;
mod flood;
mod heartbeat;
mod load;
mod random;

use std::io;
use std::thread::sleep;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let task = arguments.first().map_or("", String::as_str);
    let outcome = match task {
        "disks" => load::run(
            number(&arguments, 1),
            &load::Settings {
                requests: number(&arguments, 2),
                granularity_bytes: number(&arguments, 3),
                disks: number(&arguments, 4),
            },
        ),
        "flood" => flood::run(
            number(&arguments, 1),
            &flood::Settings {
                seconds: number(&arguments, 2),
                threads: number(&arguments, 3),
                disks: number(&arguments, 4),
            },
        ),
        _ => heartbeat(&arguments),
    };
    if let Err(error) = outcome {
        println!("PACER 0 CORRUPT {error}");
    }
    // PID 1 must not end: the kernel would panic.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

fn heartbeat(arguments: &[String]) -> io::Result<()> {
    let [fill_mib, pages, pages_per_second, records_per_second] =
        [0, 1, 2, 3].map(|index| number(arguments, index));
    heartbeat::run(fill_mib, pages, pages_per_second, records_per_second)
}

/// 0 where there is none.
fn number<N: std::str::FromStr + Default>(arguments: &[String], index: usize) -> N {
    let word = arguments.get(index);
    word.and_then(|word| word.parse().ok()).unwrap_or_default()
}
