//! What becomes of requests when a server dies? One that can be killed, and come back at the same address.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::backend::ONE_PERSON;
use super::eventually;

/// It finds one person for everybody, and knows each request by its decision id.
pub struct Mortal {
    pub address: SocketAddr,
    life: Arc<Life>,
}

#[derive(Default)]
struct Life {
    dead: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    received: Mutex<BTreeSet<String>>,
    answered: Mutex<BTreeSet<String>>,
}

impl Mortal {
    pub fn born(address: SocketAddr) -> Mortal {
        let listener = TcpListener::bind(address).expect("bind");
        let address = listener.local_addr().expect("address");
        let life = Arc::<Life>::default();
        let server = life.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.dead.load(Ordering::SeqCst) {
                    return;
                }
                server.connections.lock().expect("connections").push(stream.try_clone().expect("clone"));
                let life = server.clone();
                thread::spawn(move || life.converse(stream));
            }
        });
        Mortal { address, life }
    }

    /// Stops listening, and ends its side of every connection, whatever is under way on it.
    pub fn kill(&self) {
        self.life.dead.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        eventually("nobody listens", || TcpStream::connect(self.address).is_err());
        for stream in self.life.connections.lock().expect("connections").drain(..) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    pub fn received(&self) -> usize {
        self.life.received.lock().expect("received").len()
    }

    /// Requests that were read here and never answered.
    pub fn lost(&self) -> BTreeSet<String> {
        let received = self.life.received.lock().expect("received");
        received.difference(&self.life.answered.lock().expect("answered")).cloned().collect()
    }
}

impl Life {
    fn converse(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut decision, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let line = line.trim_end();
                if let Some(id) = line.strip_prefix("x-decision-id: ") {
                    decision = id.to_owned();
                }
                if let Some(text) = line.strip_prefix("content-length: ") {
                    length = text.parse().expect("a length");
                }
                if line.is_empty() {
                    break;
                }
            }
            self.received.lock().expect("received").insert(decision.clone());
            if reader.read_exact(&mut vec![0; length]).is_err() {
                return;
            }
            let length = ONE_PERSON.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{ONE_PERSON}"
            );
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
            self.answered.lock().expect("answered").insert(decision);
        }
    }
}
