#![allow(clippy::unwrap_used)]
use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn config(addresses: &[&str]) -> GrpcConfig {
    GrpcConfig {
        address: addresses
            .iter()
            .map(|address| (*address).to_owned())
            .collect(),
        ..GrpcConfig::default()
    }
}

async fn error(addresses: &[&str]) -> String {
    let error = listen(&config(addresses), Vec::new()).await.unwrap_err();
    let source = std::error::Error::source(&error);
    format!(
        "{error}: {}",
        source.map(ToString::to_string).unwrap_or_default()
    )
}

#[tokio::test]
async fn a_unix_socket_has_its_owner_and_rights_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/daemon.sock");
    let address = format!("unix://{}", path.display());
    let config = GrpcConfig {
        gid: Some(12),
        ..config(&[&address])
    };
    let listeners = listen(&config, Vec::new()).await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(metadata.gid(), 12);
    assert_eq!(listeners[0].to_string(), path.to_str().unwrap());
    // Somebody is there.
    let taken = listen(&config, Vec::new()).await.unwrap_err();
    assert!(matches!(taken, DaemonError::Listen { .. }), "{taken}");
    drop(listeners);
    assert!(!path.exists());
}

#[tokio::test]
async fn addresses_that_mean_nothing_are_refused() {
    for (address, expected) in [
        ("/run/x.sock", "you meant unix:///run/x.sock ?"),
        ("npipe:////./pipe/x", "npipe is not supported"),
        ("unix://", "unix is not supported"),
        ("fd://", "no sockets found via socket activation"),
        ("tcp://127.0.0.1", "failed to listen on tcp://127.0.0.1"),
        ("tcp://:many", "invalid port"),
    ] {
        let error = error(&[address]).await;
        assert!(error.contains(expected), "{address}: {error}");
    }
    assert!(error(&[]).await.contains("cannot be empty"));
}

#[tokio::test]
async fn a_port_without_a_host_is_open_on_all_addresses() {
    let both = config(&["tcp://:0", "tcp://127.0.0.1:0"]);
    let listeners = listen(&both, Vec::new()).await.unwrap();
    let port = listeners[0].tcp_address().unwrap().port();
    tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    assert!(listeners[1].tcp_address().unwrap().ip().is_loopback());
}

#[tokio::test]
async fn passed_sockets_are_taken_by_name_number_or_all_together() {
    let dir = tempfile::tempdir().unwrap();
    let passed = || {
        let number = std::fs::read_dir(dir.path()).unwrap().count();
        let path = dir.path().join(number.to_string());
        let unix = std::os::unix::net::UnixListener::bind(path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let [unix, tcp] = [unix.into(), tcp.into()];
        let named = |fd, name: &str| Passed {
            fd,
            name: name.to_owned(),
        };
        vec![named(unix, "api"), named(tcp, "")]
    };
    let is_tcp = |listeners: Vec<Listener>| {
        let tcp = listeners.iter().map(|it| it.tcp_address().is_some());
        tcp.collect::<Vec<_>>()
    };
    let all = listen(&config(&["fd://"]), passed()).await.unwrap();
    assert_eq!(is_tcp(all), [false, true]);
    let named = config(&["fd://api", "fd://*"]);
    let both = listen(&named, passed()).await.unwrap();
    assert_eq!(is_tcp(both), [false, true]);
    let passed = passed();
    let number = std::os::fd::AsRawFd::as_raw_fd(&passed[1].fd);
    let numbered = config(&[&format!("fd://{number}")]);
    let one = listen(&numbered, passed).await.unwrap();
    assert_eq!(is_tcp(one), [true]);
}

#[tokio::test]
async fn what_was_passed_must_listen() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    for fd in [one.into(), file.into()] {
        let passed = Passed {
            fd,
            name: String::new(),
        };
        let refused = listen(&config(&["fd://"]), vec![passed]).await.unwrap_err();
        assert!(matches!(refused, DaemonError::Listen { .. }), "{refused}");
    }
}

#[tokio::test]
async fn certificates_come_in_pairs() {
    for (cert, key, ca) in [
        ("/c", "", ""),
        ("", "/k", ""),
        ("", "", "/a"),
        ("/c", "/k", ""),
    ] {
        let mut config = config(&["tcp://127.0.0.1:0"]);
        config.tls = crate::config::TlsConfig {
            cert: cert.to_owned(),
            key: key.to_owned(),
            ca: ca.to_owned(),
        };
        let refused = listen(&config, Vec::new()).await.unwrap_err();
        assert!(matches!(refused, DaemonError::Tls { .. }), "{refused}");
    }
}

/// A Unix socket's listener and the other side's way to it.
async fn open(dir: &std::path::Path) -> (Connections, std::path::PathBuf) {
    let path = dir.join("daemon.sock");
    let config = config(&[&format!("unix://{}", path.display())]);
    let listeners = listen(&config, Vec::new()).await.unwrap();
    (Connections::of(listeners), path)
}

/// Whether the other side has hung up; waits for that.
async fn hung_up(client: &mut tokio::net::UnixStream) -> bool {
    use tokio::io::AsyncReadExt;
    matches!(client.read(&mut [0]).await, Ok(0) | Err(_))
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_sent_away_after_a_while() {
    use futures::StreamExt;
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let (mut connections, path) = open(dir.path()).await;
    let begin = tokio::time::Instant::now();
    let mut silent = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut slow = tokio::net::UnixStream::connect(&path).await.unwrap();
    slow.write_all(b"PRI * HT").await.unwrap();
    let mut other = tokio::net::UnixStream::connect(&path).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert!(hung_up(&mut other).await);
    assert!(hung_up(&mut silent).await && hung_up(&mut slow).await);
    let waited = begin.elapsed().as_secs();
    assert!((30..40).contains(&waited), "{waited} s");
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    assert!(connections.next().await.unwrap().is_ok());
}

#[tokio::test]
async fn of_very_many_who_say_nothing_the_oldest_go_first() {
    use futures::StreamExt;
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let (mut connections, path) = open(dir.path()).await;
    let connect = || tokio::net::UnixStream::connect(&path);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect().await.unwrap());
    }
    let mut client = connect().await.unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    assert!(connections.next().await.unwrap().is_ok());
    for oldest in &mut silent[..40] {
        assert!(hung_up(oldest).await);
    }
    let newest = silent.last_mut().unwrap();
    assert!(newest.try_read(&mut [0]).is_err(), "it still may speak");
    // The end of the daemon is the end of all.
    drop(connections);
    assert!(hung_up(newest).await);
}
