//! `mnemon serve` under load: requests and sockets at once, every answer checked.
//!
//!     cargo bench --bench serve -- [--requests 100000] [--sockets 500] [--messages 200]
//!
//! A model of one layer, I = 16, H = 64, on the CPU; 16 connections share the requests, of 1 to 8 steps each, and each socket
//! sends its messages one after the other. Wrong answers end it. A JSON line each for requests and messages, then the
//! server is stopped, which it must do by itself.

use mnemon::device::Device;
use mnemon::nn::{Dense, Input, Lstm, Sequential};
use mnemon::params::Tensor;
use mnemon::params::random::Random;
use mnemon::streams::{StreamOptions, Streams};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tungstenite::Message;

const FEATURES: usize = 16;
const CONNECTIONS: usize = 16;

/// A request or message, and its right answer.
type Exchange = (Vec<u8>, Vec<u8>);

fn bytes(x: &Tensor) -> Vec<u8> {
    x.f32s().expect("floats").iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn steps(count: usize, seed: u64) -> Tensor {
    let mut random = Random::new(seed, 0);
    let values = (0..count * FEATURES).map(|_| random.normal() as f32).collect();
    Tensor::new(&[count, FEATURES], values).expect("as many as the shape has")
}

fn main() {
    let (mut requests, mut sockets, mut messages) = (100_000, 500, 200);
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word}: a number"));
        match word.as_str() {
            "--requests" => requests = value,
            "--sockets" => sockets = value,
            "--messages" => messages = value,
            _ => panic!("expected --requests, --sockets or --messages, got {word}"),
        }
    }
    let path = std::env::temp_dir().join(format!("mnemon-bench-serve-{}.safetensors", std::process::id()));
    let mut model = Sequential::new(&Device::cpu());
    model.add(Lstm::new(64));
    model.add(Dense::new(4));
    model.build(Input::Features(FEATURES)).expect("a model");
    model.save(&path).expect("a file");
    let imported = mnemon::io::read_model(&path, None).expect("the model");
    let here = Streams::open(&Device::cpu(), &imported.network, imported.parameters, StreamOptions::default());
    let here = here.expect("streams");
    let runs: Vec<Exchange> = (0..64)
        .map(|n| {
            let x = steps(1 + n % 8, n as u64);
            (bytes(&x), bytes(&here.stream().and_then(|s| s.run(&x)).expect("outputs")))
        })
        .collect();
    let scripts: Vec<Vec<Exchange>> = (0..8u64)
        .map(|script| {
            let stream = here.stream().expect("a stream");
            let one = |n: usize| {
                let x = steps(1 + n % 3, 1000 * (script + 1) + n as u64);
                (bytes(&x), bytes(&stream.run(&x).expect("outputs")))
            };
            (0..messages).map(one).collect()
        })
        .collect();
    drop(here);

    let mut server = Command::new(env!("CARGO_BIN_EXE_mnemon"))
        .args(["serve", path.to_str().expect("a path"), "--listen", "127.0.0.1:0", "--device", "cpu"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a server");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next()).expect("an address");
    let address: SocketAddr = address.parse().expect("an address");

    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let talks: Vec<_> = (0..sockets)
            .map(|n| {
                let script = &scripts[n % scripts.len()];
                let talk = std::thread::Builder::new().stack_size(1 << 18);
                talk.spawn_scoped(scope, move || converse(address, script)).expect("a thread")
            })
            .collect();
        let asks: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (runs, next) = (&runs, &next);
                scope.spawn(move || ask(address, runs, next, requests))
            })
            .collect();
        let join = |all: Vec<std::thread::ScopedJoinHandle<'_, Vec<Duration>>>| -> Vec<Duration> {
            all.into_iter().flat_map(|one| one.join().expect("right answers")).collect()
        };
        let begin = Instant::now();
        let asked = join(asks);
        report("requests", asked, begin.elapsed());
        report("messages", join(talks), begin.elapsed());
    });
    let stopped = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill");
    assert!(stopped.success() && server.wait().expect("its end").success(), "the server stops by itself");
    let _ = std::fs::remove_file(&path);
}

fn report(what: &str, mut times: Vec<Duration>, whole: Duration) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let (count, rate) = (times.len(), times.len() as f64 / whole.as_secs_f64());
    println!(
        r#"{{"what":"{what}","right":{count},"per_s":{rate:.0},"p50_ms":{:.2},"p99_ms":{:.2}}}"#,
        at(0.5),
        at(0.99)
    );
}

/// Sends requests over one connection until all are sent.
fn ask(address: SocketAddr, runs: &[Exchange], next: &AtomicUsize, requests: usize) -> Vec<Duration> {
    let connection = TcpStream::connect(address).expect("a connection");
    connection.set_nodelay(true).expect("a connection");
    let mut writer = connection.try_clone().expect("a connection");
    let (mut reader, mut times) = (BufReader::new(connection), Vec::new());
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= requests {
            return times;
        }
        let ((x, y), begin) = (&runs[n % runs.len()], Instant::now());
        let head = format!(
            "POST /v1/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            x.len()
        );
        writer.write_all(&[head.as_bytes(), x].concat()).expect("a request");
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).expect("an answer") > 0, "request {n}: the connection has ended");
            if status.is_empty() {
                status = line.clone();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        assert!(status.contains(" 200 "), "request {n}: {status} {}", String::from_utf8_lossy(&body));
        assert!(&body == y, "request {n}: another answer");
        times.push(begin.elapsed());
    }
}

/// Sends a script's messages over a socket.
fn converse(address: SocketAddr, script: &[Exchange]) -> Vec<Duration> {
    let (mut socket, _) = tungstenite::connect(format!("ws://{address}/v1/ws")).expect("a socket");
    let mut times = Vec::new();
    for (n, (x, y)) in script.iter().enumerate() {
        let begin = Instant::now();
        socket.send(Message::Binary(x.clone().into())).expect("a message");
        let answer = socket.read().expect("an answer").into_data();
        assert!(answer[..] == y[..], "message {n}: another answer");
        times.push(begin.elapsed());
    }
    times
}
