//! A page in a real browser: served from an origin of its own, opened by headless Chromium, and heard when it says how it went.
//!
//! The page's script calls `report(object)`, which the helper script here sends back, and `tell(text)` on its way there; an error nobody
//! caught is reported too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::folder;
use crate::process::Process;

/// Runs in the page before its own script.
const HELPER: &str = "const tell = (text) => fetch('/tell', {method: 'POST', body: text});\n\
    const report = (result) => fetch('/report', {method: 'POST', body: JSON.stringify(result)});\n\
    addEventListener('error', (event) => report({error: String(event.message)}));\n\
    addEventListener('unhandledrejection', (event) => report({error: String(event.reason)}));\n";

/// A place that serves one page.
pub struct Page {
    listener: TcpListener,
    told: Told,
}

/// What a page has told so far.
#[derive(Debug, Default, Clone)]
pub struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    pub fn has(&self, text: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|told| told == text)
    }
}

impl Page {
    pub fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a port is free"), told: Told::default() }
    }

    pub fn told(&self) -> Told {
        self.told.clone()
    }

    /// What the browser says in `Origin`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address())
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// Opens the page with `script` (a module) in a browser, and waits for its report.
    #[track_caller]
    pub fn open(self, script: &str, limit: Duration) -> Value {
        let url = self.origin();
        let document = format!(
            "<!doctype html><meta charset=utf-8><script>{HELPER}</script><script type=module>{script}</script>"
        );
        let (sender, reports) = mpsc::channel();
        std::thread::spawn(move || serve(&self.listener, &document, &(sender, self.told)));
        let log = folder::fresh("chromium", ".log");
        let output = std::fs::File::create(&log).expect("the run's folder can be written");
        let mut command = Command::new("chromium");
        let profile = folder::fresh("chromium", ".profile");
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--remote-debugging-port=0"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(&url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let _browser = Process::start("chromium", command).expect("the tests need Chromium (package chromium)");
        let report =
            received(&reports, limit).unwrap_or_else(|| panic!("the page said nothing; see {}", log.display()));
        assert!(report.get("error").is_none(), "{report}");
        report
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

fn received(reports: &Receiver<Vec<u8>>, limit: Duration) -> Option<Value> {
    let report = reports.recv_timeout(limit).ok()?;
    Some(serde_json::from_slice(&report).expect("a report is JSON"))
}

fn serve(listener: &TcpListener, document: &str, heard: &(Sender<Vec<u8>>, Told)) {
    for stream in listener.incoming().map_while(Result::ok) {
        let (document, heard) = (document.to_owned(), heard.clone());
        // A browser opens connections it may not use.
        std::thread::spawn(move || answer(stream, &document, &heard));
    }
}

fn answer(mut stream: TcpStream, document: &str, (reports, told): &(Sender<Vec<u8>>, Told)) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let (head, length) = loop {
        let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
        request.extend_from_slice(&buffer[..read]);
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        break (head, end + 4 + length.unwrap_or(0));
    };
    while request.len() < length {
        let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
        request.extend_from_slice(&buffer[..read]);
    }
    let start = request.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |end| end + 4);
    let body = if head.starts_with("post /report ") {
        let _ = reports.send(request[start..].to_vec());
        ""
    } else if head.starts_with("post /tell ") {
        let text = String::from_utf8_lossy(&request[start..]).into_owned();
        told.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        ""
    } else {
        document
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}
