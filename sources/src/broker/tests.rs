//! The broker against clients made of plain sockets.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mqtt::packet::{Connect, Publish};
use std::time::Instant;

struct Client {
    stream: TcpStream,
    frames: Frames,
}

impl Client {
    fn connect(broker: &Broker, client_id: &str, clean_session: bool) -> (Client, bool) {
        let stream = TcpStream::connect(broker.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { stream, frames: Frames::new(PACKET_BYTES_MAX) };
        let connect = Connect {
            protocol: Protocol::V311,
            client_id,
            clean_session,
            keep_alive_s: 0,
            username: None,
            password: None,
            session_expiry_s: 0,
        };
        client.send(|out| packet::write_connect(out, &connect));
        let present = client.expect(packet::CONNACK, |body| {
            assert_eq!(body[1], 0);
            body[0] == 1
        });
        (client, present)
    }

    fn subscribed(broker: &Broker, client_id: &str, filter: &str, qos: u8) -> Client {
        let (mut client, _) = Client::connect(broker, client_id, false);
        client.send(|out| packet::write_subscribe(out, Protocol::V311, filter, qos));
        client.expect(packet::SUBACK, |body| assert_eq!(body[2], qos));
        client
    }

    fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    fn publish(&mut self, topic: &str, packet_id: u16, payload: &[u8]) {
        let qos = u8::from(packet_id > 0);
        self.send(|out| {
            packet::write_publish(out, &Publish { qos, topic, packet_id, payload }, false);
        });
    }

    /// The next packet, which has to be of this kind.
    fn expect<T>(&mut self, kind: u8, read: impl FnOnce(&[u8]) -> T) -> T {
        loop {
            if let Some(frame) = self.frames.next().unwrap() {
                assert_eq!(frame.kind(), kind);
                return read(frame.body);
            }
            assert_ne!(self.frames.fill(&mut self.stream).unwrap(), 0, "hung up");
        }
    }

    fn message(&mut self) -> (String, u16, Vec<u8>) {
        loop {
            if let Some(frame) = self.frames.next().unwrap() {
                let publish = packet::read_publish(&frame, Protocol::V311).unwrap();
                return (publish.topic.to_owned(), publish.packet_id, publish.payload.to_vec());
            }
            assert_ne!(self.frames.fill(&mut self.stream).unwrap(), 0, "hung up");
        }
    }

    fn acknowledge(&mut self, packet_id: u16) {
        self.send(|out| packet::write_puback(out, packet_id));
    }
}

#[test]
fn messages_reach_those_who_want_them_once_and_in_order() {
    let broker = Broker::start("127.0.0.1:0").unwrap();
    let mut all = Client::subscribed(&broker, "all", "grid/#", 1);
    all.send(|out| packet::write_subscribe(out, Protocol::V311, "grid/3/+", 0));
    all.expect(packet::SUBACK, |_| ());
    let mut other = Client::subscribed(&broker, "other", "grid/4/+", 0);
    let (mut meter, _) = Client::connect(&broker, "", true);
    meter.publish("grid/3/a", 7, b"one");
    meter.expect(packet::PUBACK, |body| assert_eq!(body, [0, 7]));
    meter.publish("grid/4/b", 0, b"two");
    meter.publish("plant/1", 8, b"nobody wants it");
    meter.expect(packet::PUBACK, |body| assert_eq!(body, [0, 8]));
    assert_eq!(all.message(), ("grid/3/a".to_owned(), 1, b"one".to_vec()));
    assert_eq!(all.message(), ("grid/4/b".to_owned(), 0, b"two".to_vec()));
    assert_eq!(other.message(), ("grid/4/b".to_owned(), 0, b"two".to_vec()));
    meter.send(|out| packet::write_packet(out, packet::PINGREQ, 0, &[]));
    meter.expect(packet::PINGRESP, |_| ());
}

#[test]
fn a_session_keeps_what_its_client_did_not_acknowledge() {
    let broker = Broker::start("127.0.0.1:0").unwrap();
    let mut reader = Client::subscribed(&broker, "reader", "t", 1);
    let (mut meter, _) = Client::connect(&broker, "meter", true);
    for id in 1..=3 {
        meter.publish("t", id, &[id as u8]);
        meter.expect(packet::PUBACK, |_| ());
    }
    assert_eq!((reader.message().1, reader.message().1), (1, 2));
    reader.acknowledge(1);
    // The answer to a ping comes after the acknowledgement has been taken in, behind message 3.
    reader.send(|out| packet::write_packet(out, packet::PINGREQ, 0, &[]));
    assert_eq!(reader.message().2, [3]);
    reader.expect(packet::PINGRESP, |_| ());
    let (mut again, present) = Client::connect(&broker, "reader", false);
    assert!(present);
    assert_eq!((again.message().2, again.message().2), (vec![2], vec![3]));
    // The connection that was taken over is closed.
    assert_eq!(reader.frames.fill(&mut reader.stream).unwrap(), 0);
    let (_, present) = Client::connect(&broker, "reader", true);
    assert!(!present);
}

#[test]
fn a_lagging_subscriber_makes_publishers_wait_and_nothing_is_lost() {
    const MESSAGES: u32 = 3_000;
    let broker = Broker::start("127.0.0.1:0").unwrap();
    let mut reader = Client::subscribed(&broker, "reader", "t", 1);
    let (mut meter, _) = Client::connect(&broker, "meter", true);
    let mut copy = meter.stream.try_clone().unwrap();
    let publisher = std::thread::spawn(move || {
        let mut payload = vec![0; 10_000];
        for n in 0..MESSAGES {
            payload[..4].copy_from_slice(&n.to_be_bytes());
            let mut out = Vec::new();
            let id = (n % 65_535 + 1) as u16;
            let publish = Publish { qos: 1, topic: "t", packet_id: id, payload: &payload };
            packet::write_publish(&mut out, &publish, false);
            copy.write_all(&out).unwrap();
        }
    });
    // Nobody reads: acknowledgements stop when the queue is full, long before the end.
    meter.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut acknowledged = 0;
    loop {
        while meter.frames.next().unwrap().is_some() {
            acknowledged += 1;
        }
        if meter.frames.fill(&mut meter.stream).is_err() {
            break;
        }
    }
    assert!((1..MESSAGES).contains(&acknowledged), "{acknowledged}");
    let begun = Instant::now();
    for n in 0..MESSAGES {
        let (_, id, payload) = reader.message();
        assert_eq!(payload[..4], n.to_be_bytes());
        reader.acknowledge(id);
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    publisher.join().unwrap();
}

#[test]
fn it_ends_with_its_value_even_while_publishers_wait() {
    let broker = Broker::start("127.0.0.1:0").unwrap();
    let _reader = Client::subscribed(&broker, "reader", "t", 1);
    let (mut meter, _) = Client::connect(&broker, "meter", true);
    let publisher = std::thread::spawn(move || {
        let mut out = Vec::new();
        let publish = Publish { qos: 1, topic: "t", packet_id: 1, payload: &[0; 100_000] };
        packet::write_publish(&mut out, &publish, false);
        while meter.stream.write_all(&out).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    drop(broker);
    assert!(begun.elapsed() < Duration::from_secs(2));
    publisher.join().unwrap();
}

#[test]
fn other_versions_are_refused() {
    let broker = Broker::start("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(broker.address()).unwrap();
    let mut client = Client { stream, frames: Frames::new(1_000) };
    let connect = Connect {
        protocol: Protocol::V5,
        client_id: "five",
        clean_session: true,
        keep_alive_s: 0,
        username: None,
        password: None,
        session_expiry_s: 0,
    };
    client.send(|out| packet::write_connect(out, &connect));
    client.expect(packet::CONNACK, |body| assert_eq!(body, [0, REFUSED_VERSION]));
}
