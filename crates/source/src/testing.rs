//! What the tests stand on: a cache in a folder, and a server that has some files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cooper_cache::{CacheConfig, CacheManager, LocalRef};
use cooper_content::{ContentStore, MemoryContentStore};
use cooper_progress::VertexProgress;
use cooper_session::Group;
use cooper_snapshot::NativeSnapshotter;
use cooper_store::Store;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::SourceContext;

pub(crate) struct Place {
    _dir: tempfile::TempDir,
    pub(crate) cache: CacheManager,
    pub(crate) content: Arc<dyn ContentStore>,
}

pub(crate) async fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let content: Arc<dyn ContentStore> = Arc::new(MemoryContentStore::default());
    let snapshots = NativeSnapshotter::open(dir.path(), store.clone()).unwrap();
    let config = CacheConfig {
        store,
        dropped: Vec::new(),
        snapshotter: Arc::new(snapshots),
        content: content.clone(),
        mounts: dir.path().join("mounts"),
    };
    Place {
        cache: CacheManager::open(config).await.unwrap(),
        content,
        _dir: dir,
    }
}

pub(crate) fn nobody() -> SourceContext {
    SourceContext {
        sessions: Group::none(),
        progress: VertexProgress::discard(),
        memories: Vec::new(),
    }
}

/// The content of a file of a state.
pub(crate) async fn read(local: &LocalRef, path: &str) -> String {
    let mounted = local.mount().await.unwrap();
    std::fs::read_to_string(mounted.path().join(path)).unwrap()
}

/// An answer: status, headers and body.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A server of answers by path. An `ETag` is compared with the request's.
pub(crate) struct Server {
    pub(crate) host: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    /// `METHOD path` and the headers of each request so far.
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answers = Arc::new(Mutex::new(HashMap::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (all, seen) = (answers.clone(), requests.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, all.clone(), seen.clone()));
            }
        });
        Self {
            host,
            answers,
            requests,
            task,
        }
    }

    pub(crate) fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.into(), answer);
    }

    /// The requests since the last call, `METHOD path`.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let mut words = lines[0].split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        requests.lock().unwrap().push(format!("{method} {path}"));
        let answer = answers.lock().unwrap().get(path).cloned();
        let mut answer = answer.unwrap_or(Answer {
            status: 404,
            ..Answer::default()
        });
        let tag = answer.headers.iter().find(|(name, _)| name == "ETag");
        let asked = lines.iter().find_map(|line| {
            line.to_lowercase()
                .strip_prefix("if-none-match: ")
                .map(str::to_owned)
        });
        if let (Some((_, tag)), Some(asked)) = (tag, asked)
            && asked.split(", ").any(|asked| asked == tag.to_lowercase())
        {
            answer.status = 304;
            answer.body.clear();
        }
        let mut text = format!("HTTP/1.1 {} x\r\n", answer.status);
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
        let body: &[u8] = if method == "HEAD" { &[] } else { &answer.body };
        if stream.write_all(text.as_bytes()).await.is_err() || stream.write_all(body).await.is_err()
        {
            return;
        }
    }
}
