//! `mnemon serve` answers as the library does, refuses what is wrong, and stops without losing an answer.

use mnemon::device::Device;
use mnemon::io;
use mnemon::nn::{Dense, Input, Lstm, Sequential};
use mnemon::params::Tensor;
use mnemon::params::random::Random;
use mnemon::streams::{StreamOptions, Streams};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::client::IntoClientRequest;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

const FEATURES: usize = 3;
const TOKEN: &str = "a token";

/// A model in a file of its own, which goes when the test does.
struct Model(PathBuf);

impl Model {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mnemon-serve-{name}-{}.safetensors", std::process::id()));
        let mut model = Sequential::new(&Device::cpu());
        model.seed(4);
        model.add(Lstm::new(24));
        model.add(Dense::new(2));
        model.build(Input::Features(FEATURES)).unwrap();
        model.save(&path).unwrap();
        Self(path)
    }

    /// The same model here.
    fn streams(&self) -> Streams {
        let model = io::read_model(&self.0, None).unwrap();
        Streams::open(&Device::cpu(), &model.network, model.parameters, StreamOptions::default()).unwrap()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server, killed at last if it still runs.
struct Server {
    process: Child,
    address: SocketAddr,
    token: bool,
}

impl Server {
    fn start(model: &Model, more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mnemon"))
            .args(["serve", model.0.to_str().unwrap(), "--listen", "127.0.0.1:0", "--device", "cpu"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("an address in {line}")).parse().unwrap();
        Self { process, address, token: more.contains(&"--token") }
    }

    /// The status and the body of the answer to a request.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if self.token {
            head += &format!("Authorization: Bearer {TOKEN}\r\n");
        }
        if !kind.is_empty() {
            head += &format!("Content-Type: {kind}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat())
    }

    /// The answer to what may be no request.
    fn send(&self, bytes: &[u8]) -> (u16, Vec<u8>) {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may answer, and close, before it has read everything.
        let _ = connection.write_all(bytes);
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        (status, answer[body..].to_vec())
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.ask(method, path, "application/json", body.to_string().as_bytes());
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn socket(&self, path: &str) -> WebSocket<MaybeTlsStream<TcpStream>> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        if self.token {
            request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        }
        tungstenite::connect(request).unwrap().0
    }

    fn terminate(&self) {
        let done = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Waits until it has ended; tells whether it ended well.
    fn ended(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server does not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn steps(count: usize, seed: u64) -> Tensor {
    let mut random = Random::new(seed, 0);
    Tensor::new(&[count, FEATURES], (0..count * FEATURES).map(|_| random.normal() as f32).collect()).unwrap()
}

fn as_json(x: &Tensor) -> Value {
    json!({ "x": x.f32s().unwrap().chunks(x.shape()[1]).collect::<Vec<_>>() })
}

fn as_bytes(x: &Tensor) -> Vec<u8> {
    x.f32s().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn from_json(y: &Value) -> Vec<u32> {
    let rows = y["y"].as_array().unwrap_or_else(|| panic!("outputs in {y}"));
    let values = rows.iter().flat_map(|row| row.as_array().unwrap());
    values.map(|v| (v.as_f64().unwrap() as f32).to_bits()).collect()
}

fn from_bytes(y: &[u8]) -> Vec<u32> {
    y.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn bits(y: &Tensor) -> Vec<u32> {
    y.f32s().unwrap().iter().map(|v| v.to_bits()).collect()
}

const BINARY: &str = "application/octet-stream";

#[test]
fn requests_and_sockets_are_answered_with_the_bits_of_the_library() {
    let model = Model::new("answers");
    let (server, here) = (Server::start(&model, &["--token", TOKEN]), model.streams());
    let (status, about) = server.json("GET", "/v1/model", &Value::Null);
    assert_eq!((status, &about["input"], &about["output"]), (200, &json!(FEATURES), &json!(2)));
    let x = steps(30, 1);
    let wanted = bits(&here.stream().unwrap().run(&x).unwrap());
    let (status, y) = server.json("POST", "/v1/run", &as_json(&x));
    assert_eq!((status, from_json(&y)), (200, wanted.clone()), "{y}");
    let (status, y) = server.ask("POST", "/v1/run", BINARY, &as_bytes(&x));
    assert_eq!((status, from_bytes(&y)), (200, wanted.clone()));

    // A stream in parts, one of them longer than its queues, another none; its state elsewhere, and a fork.
    let local = here.stream().unwrap();
    let (status, opened) = server.json("POST", "/v1/streams", &Value::Null);
    // A body of JSON is no state.
    assert_eq!(status, 400, "{opened}");
    let (status, opened) = server.ask("POST", "/v1/streams", "", b"");
    assert_eq!(status, 201);
    let id = serde_json::from_slice::<Value>(&opened).unwrap()["id"].as_str().unwrap().to_string();
    let path = format!("/v1/streams/{id}");
    for (seed, count) in [(2, 1), (3, 0), (4, 700)] {
        let x = steps(count, seed);
        let (status, y) = server.ask("POST", &path, BINARY, &as_bytes(&x));
        assert_eq!((status, from_bytes(&y)), (200, bits(&local.run(&x).unwrap())), "{count} steps");
    }
    let (status, state) = server.ask("GET", &format!("{path}/state"), "", b"");
    assert_eq!(status, 200);
    let (status, restored) = server.ask("POST", "/v1/streams", BINARY, &state);
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&restored));
    let (status, forked) = server.ask("POST", &format!("{path}/fork"), "", b"");
    assert_eq!(status, 201);
    let x = steps(5, 5);
    let wanted = bits(&local.run(&x).unwrap());
    for other in [&restored, &forked] {
        let other = serde_json::from_slice::<Value>(other).unwrap()["id"].as_str().unwrap().to_string();
        let (status, y) = server.json("POST", &format!("/v1/streams/{other}"), &as_json(&x));
        assert_eq!((status, from_json(&y)), (200, wanted.clone()));
    }
    let mut socket = server.socket(&format!("{path}/ws"));
    socket.send(Message::Binary(as_bytes(&x).into())).unwrap();
    assert_eq!(from_bytes(&socket.read().unwrap().into_data()), wanted, "a socket of the stream");
    drop(socket);
    assert_eq!(server.ask("DELETE", &path, "", b"").0, 204);
    assert_eq!(server.ask("DELETE", &path, "", b"").0, 404);

    let (mut socket, local) = (server.socket("/v1/ws"), here.stream().unwrap());
    for seed in 6..9 {
        let x = steps(4, seed);
        let wanted = bits(&local.run(&x).unwrap());
        match seed % 2 {
            0 => socket.send(Message::Binary(as_bytes(&x).into())).unwrap(),
            _ => socket.send(Message::Text(as_json(&x).to_string().into())).unwrap(),
        }
        let got = match socket.read().unwrap() {
            Message::Binary(y) => from_bytes(&y),
            Message::Text(y) => from_json(&serde_json::from_str(&y).unwrap()),
            other => panic!("{other}"),
        };
        assert_eq!(got, wanted);
        // What is wrong is refused, and the stream is where it was.
        socket.send(Message::Text("{\"x\": [[1]]}".into())).unwrap();
        assert!(socket.read().unwrap().to_text().unwrap().contains("expected steps of 3 values"));
    }
    let (status, text) = server.ask("GET", "/metrics", "", b"");
    let text = String::from_utf8(text).unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("mnemon_streams_open 3\n") && text.contains("mnemon_requests_total{status=\"4xx\"} 2\n"),
        "{text}"
    );
}

#[test]
fn what_is_wrong_is_refused_and_the_rest_goes_on() {
    let model = Model::new("refusals");
    let limits = ["--token", TOKEN, "--body", "4096", "--timeout", "0.5", "--streams", "2", "--idle", "1"];
    let server = Server::start(&model, &limits);
    let good = as_json(&steps(2, 1)).to_string();
    let authorised = format!("Authorization: Bearer {TOKEN}\r\nHost: localhost\r\nConnection: close\r\n");
    let without = |header: &str| {
        format!(
            "POST /v1/run HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n{good}",
            good.len()
        )
    };
    for header in ["", "Authorization: Bearer a tokem\r\n", "Authorization: Bearer a\r\n", "Authorization: a token\r\n"]
    {
        assert_eq!(server.send(without(header).as_bytes()).0, 401, "{header}");
    }
    assert_eq!(server.send(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").0, 200, "nothing is told");
    let post = |body: &[u8], kind: &str| server.ask("POST", "/v1/run", kind, body);
    let said = |answer: &(u16, Vec<u8>)| String::from_utf8_lossy(&answer.1).into_owned();
    for (status, body, kind, what) in [
        (400, &b"{\"x\": [[1, 2]]}"[..], "application/json", "expected steps of 3 values, step 0 has 2"),
        (400, b"{\"x\": [[1, 2, 3]], \"z\": 1}", "application/json", "unknown field"),
        (400, b"{\"x\": ", "application/json", "EOF"),
        (400, b"12345", BINARY, "expected steps of 12 bytes, got 5"),
        (415, b"x=1", "application/x-www-form-urlencoded", "expected application/json"),
        (413, &[b' '; 5000], "application/json", "at most 4096"),
    ] {
        let answer = post(body, kind);
        assert_eq!(answer.0, status, "{}", said(&answer));
        assert!(said(&answer).contains(what), "{} has no {what}", said(&answer));
    }
    assert_eq!(server.ask("POST", "/v1/streams/0123", "", good.as_bytes()).0, 404);
    assert_eq!(server.ask("GET", "/v2", "", b"").0, 404);
    assert_eq!(server.ask("PUT", "/v1/run", "", b"").0, 405);
    // A body that does not come, a head that does not end, and what is no HTTP.
    let begin = Instant::now();
    let late = format!("POST /v1/run HTTP/1.1\r\n{authorised}Content-Length: 100\r\n\r\n{{");
    assert_eq!(server.send(late.as_bytes()).0, 408);
    assert!(matches!(server.send(format!("POST /v1/run HTTP/1.1\r\n{authorised}").as_bytes()).0, 0 | 408));
    assert!(begin.elapsed() < Duration::from_secs(10), "slow ones are cut off");
    assert_eq!(server.send(b"what is this\r\n\r\n").0, 400);
    // Two streams and no third, until they have been idle.
    let opened: Vec<u16> = (0..3).map(|_| server.ask("POST", "/v1/streams", "", b"").0).collect();
    assert_eq!(opened, [201, 201, 503]);
    assert_eq!(post(good.as_bytes(), "application/json").0, 503);
    std::thread::sleep(Duration::from_millis(1600));
    assert_eq!(post(good.as_bytes(), "application/json").0, 200, "idle streams were closed");
    let mut socket = server.socket("/v1/ws");
    let closed = socket.read().unwrap();
    assert!(matches!(&closed, Message::Close(Some(frame)) if frame.reason.contains("idle")), "{closed}");
}

#[test]
fn sockets_count_among_the_connections() {
    let model = Model::new("connections");
    let server = Server::start(&model, &["--connections", "2"]);
    let ask = |wait: u64| {
        let mut connection = TcpStream::connect(server.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(wait))).unwrap();
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        connection.read(&mut [0; 12]).is_ok_and(|n| n > 0)
    };
    assert!(ask(5000));
    let sockets = [server.socket("/v1/ws"), server.socket("/v1/ws")];
    assert!(!ask(300), "a third waits");
    drop(sockets);
    assert!(ask(5000), "until one has gone");
}

#[test]
fn a_graceful_stop_loses_no_answer() {
    let model = Model::new("stop");
    let (mut server, here) = (Server::start(&model, &[]), model.streams());
    let answered = std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for n in 0..12u64 {
            let (server, here) = (&server, &here);
            clients.push(scope.spawn(move || {
                let (mut socket, local) = (server.socket("/v1/ws"), here.stream().unwrap());
                let mut answered = 0;
                loop {
                    let x = steps(1 + answered % 9, 100 * n + answered as u64);
                    if socket.send(Message::Binary(as_bytes(&x).into())).is_err() {
                        return answered;
                    }
                    match socket.read() {
                        Ok(Message::Binary(y)) => assert_eq!(from_bytes(&y), bits(&local.run(&x).unwrap())),
                        // The end is said, and not in the middle of an answer.
                        Ok(Message::Close(Some(frame))) => {
                            assert!(frame.reason.contains("stops"), "{frame}");
                            return answered;
                        }
                        other => panic!("client {n} after {answered} answers: {other:?}"),
                    }
                    answered += 1;
                }
            }));
        }
        // One request that has begun before the stop, and ends after it.
        let body = as_bytes(&steps(2000, 1));
        let mut slow = TcpStream::connect(server.address).unwrap();
        let head = format!(
            "POST /v1/run HTTP/1.1\r\nHost: h\r\nContent-Type: {BINARY}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        slow.write_all(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        server.terminate();
        std::thread::sleep(Duration::from_millis(100));
        slow.write_all(&body).unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..60.min(answer.len())]));
        assert!(answer.ends_with(&as_bytes(&here.stream().unwrap().run(&steps(2000, 1)).unwrap())));
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert!(answered > 12, "{answered} answers before the stop");
    assert!(server.ended());
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn the_description_names_every_route() {
    let model = Model::new("openapi");
    let server = Server::start(&model, &[]);
    let (status, text) = server.ask("GET", "/openapi.json", "", b"");
    assert_eq!(status, 200);
    let description: Value = serde_json::from_slice(&text).unwrap();
    let source = include_str!("../src/bin/mnemon/serve/routes.rs");
    let routes: Vec<&str> = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let described: Vec<&String> = description["paths"].as_object().unwrap().keys().collect();
    assert!(routes.len() > 8);
    for route in &routes {
        assert!(described.iter().any(|path| path == route), "{route} is not described");
    }
    assert_eq!(described.len(), routes.len());
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|m| *m != "parameters") {
            let (status, _) = server.ask(&method.to_uppercase(), &path.replace("{id}", "0"), "", b"");
            assert!(status != 405, "{method} {path} is described and not there");
        }
    }
}
