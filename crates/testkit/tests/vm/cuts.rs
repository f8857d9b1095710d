//! The power of the guest is cut, and what it finds after the next boot has to be right.

use std::io::Write;
use std::path::Path;

use crate::power::{Boot, Booted, Promised};

/// Where the daemon's root is, from one boot to the next.
const ROOT: &str = "/data/cut/root";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The promise of the boot before.
fn promised() -> Promised {
    let text = variable("COOPER_POWER_DURABLE");
    let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0));
    Promised {
        steps: numbers.next().unwrap_or(0),
        files: numbers.next().unwrap_or(0),
    }
}

/// Started once for each boot.
#[test]
fn goes_on() {
    let booted = Booted::begin(Boot {
        root: Path::new(ROOT),
        seed: variable("COOPER_POWER_SEED").parse().unwrap_or(1),
        promised: promised(),
        say: Box::new(|promised| {
            println!("\npower: durable {} {}", promised.steps, promised.files);
            std::io::stdout().flush().unwrap();
            // A file, when somebody looks into a case by hand.
            let _ = nix::sys::termios::tcdrain(std::io::stdout());
        }),
    });
    println!("\npower: {}", booted.report);
    if variable("COOPER_POWER_LAST") == "1" {
        booted.end();
        return;
    }
    println!("power: works");
    booted.work(std::future::pending());
}
