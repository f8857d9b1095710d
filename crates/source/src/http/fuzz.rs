//! What holds for whatever a server may say of a download.

use reqwest::Url;

use super::name::{filename, parse_time};

/// The address, the name that was asked for, the header that names the file and the time, one
/// in each line.
pub fn download(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let url = Url::parse(next()).unwrap_or_else(|_| "http://host/".parse().expect("an address"));
    let asked = next();
    for disposition in [None, Some(next())] {
        for asked in ["", asked] {
            let name = filename(&url, asked, disposition);
            // It is made in a folder of its own.
            assert!(!matches!(name.as_str(), "" | "." | ".."), "{name:?}");
            assert!(!name.contains(['/', '\0']), "{name:?}");
        }
    }
    let _ = parse_time(next());
}
