//! Names, asked for by UDP and TCP.

use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::link::{Link, has, on_a_link};

const SERVER: &str = "10.9.0.1:53";

fn question(name: &str, kind: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    request.add_query(hickory_proto::op::Query::query(name, kind));
    request
}

async fn exchange(link: &Link, request: &[u8]) -> Vec<u8> {
    let socket = link.guest_udp("0.0.0.0:0").await;
    let server: SocketAddr = SERVER.parse().expect("address");
    let mut answer = vec![0; 4096];
    for _ in 0..3 {
        socket.send_to(request, server).await.expect("sent");
        let patience = std::time::Duration::from_secs(10);
        if let Ok(length) = tokio::time::timeout(patience, socket.recv(&mut answer)).await {
            answer.truncate(length.expect("received"));
            return answer;
        }
    }
    panic!("no answer");
}

async fn ask(link: &Link, name: &str, kind: RecordType) -> Message {
    let request = question(name, kind);
    let answer = exchange(link, &request.to_vec().expect("bytes")).await;
    let answer = Message::from_vec(&answer).expect("a message");
    assert_eq!(answer.metadata.id, request.metadata.id);
    assert_eq!(answer.queries, request.queries);
    answer
}

fn texts(message: &Message) -> Vec<String> {
    let mut texts: Vec<String> = message
        .answers
        .iter()
        .map(|it| it.data.to_string())
        .collect();
    texts.sort();
    texts
}

/// A resolver of the host's that knows two names: one whose answer is short, one whose answer is
/// too long for UDP.
async fn resolver(link: &Link) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = udp.local_addr().expect("bound");
    let tcp = TcpListener::bind(address).await.expect("bind");
    let file = link.dir.path().join("resolv.conf");
    std::fs::write(file, format!("nameserver {address}\n")).expect("write");
    let answer = |request: &[u8]| {
        let request = Message::from_vec(request).expect("a question");
        let name = request.queries[0].name().clone();
        let mut answer = request.clone().into_response();
        if name.to_ascii() == "short.example." {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
            answer.add_answer(Record::from_rdata(name, 60, data));
        } else {
            for n in 0..100 {
                let data = RData::TXT(TXT::new(vec![format!("{n:040}")]));
                answer.add_answer(Record::from_rdata(name.clone(), 60, data));
            }
        }
        answer.to_vec().expect("bytes")
    };
    tokio::spawn(async move {
        let mut request = [0; 512];
        loop {
            let (length, from) = udp.recv_from(&mut request).await.expect("received");
            let answer = answer(&request[..length]);
            udp.send_to(&answer[..answer.len().min(4096)], from)
                .await
                .expect("sent");
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepted");
            let length = stream.read_u16().await.expect("a length");
            let mut request = vec![0; length.into()];
            stream.read_exact(&mut request).await.expect("a question");
            let answer = answer(&request);
            stream.write_u16(answer.len() as u16).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
        }
    });
}

#[test]
fn instances_of_the_network_are_found_by_name_and_by_address() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let id = format!("{}.hearth.internal.", link.instance_id);
        for (name, kind, expected) in [
            (
                "web-server.hearth.internal.",
                RecordType::A,
                vec!["10.9.0.5"],
            ),
            (
                "WEB-Server.hearth.internal.",
                RecordType::AAAA,
                vec!["fd09::5"],
            ),
            (&id, RecordType::A, vec!["10.9.0.5"]),
            (
                "ip-10-9-0-6.hearth.internal.",
                RecordType::A,
                vec!["10.9.0.6"],
            ),
            // Two have this name; one of them has no IPv6.
            (
                "db.hearth.internal.",
                RecordType::A,
                vec!["10.9.0.6", "10.9.0.7"],
            ),
            ("db.hearth.internal.", RecordType::AAAA, vec!["fd09::6"]),
            (
                "6.0.9.10.in-addr.arpa.",
                RecordType::PTR,
                vec!["ip-10-9-0-6.hearth.internal."],
            ),
        ] {
            let answer = ask(link, name, kind).await;
            assert_eq!(texts(&answer), expected, "{name}");
            assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        }
        // Neither what nobody has nor what somebody in another network has.
        for name in [
            "nobody.hearth.internal.",
            "secret.hearth.internal.",
            "99.0.9.10.in-addr.arpa.",
        ] {
            let answer = ask(link, name, RecordType::A).await;
            assert_eq!(
                answer.metadata.response_code,
                ResponseCode::NXDomain,
                "{name}"
            );
            assert_eq!(
                answer.authorities[0].record_type(),
                RecordType::SOA,
                "{name}"
            );
        }
        // A name that is there, without such a record.
        let answer = ask(link, "web-server.hearth.internal.", RecordType::MX).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty() && answer.authorities.len() == 1);
    });
}

#[test]
fn other_names_come_from_the_hosts_resolvers() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let answer = ask(link, "short.example.", RecordType::A).await;
        let code = answer.metadata.response_code;
        assert_eq!(code, ResponseCode::ServFail, "there is no resolver yet");
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        resolver(link).await;
        let answer = ask(link, "short.example.", RecordType::A).await;
        assert_eq!(texts(&answer), ["192.0.2.80"]);
        // Too long for UDP: cut off by UDP, whole by TCP.
        let answer = ask(link, "long.example.", RecordType::TXT).await;
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let stream = link.guest_tcp(SERVER).await;
        let mut stream = TcpStream::from_std(stream).expect("stream");
        let request = question("long.example.", RecordType::TXT)
            .to_vec()
            .expect("bytes");
        stream.write_u16(request.len() as u16).await.expect("sent");
        stream.write_all(&request).await.expect("sent");
        let length = stream.read_u16().await.expect("a length");
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(
            Message::from_vec(&answer).expect("a message").answers.len(),
            100
        );
    });
}

#[test]
fn questions_that_are_none_get_the_right_error_or_nothing() {
    on_a_link(async |link| {
        link.configure_ipv4();
        let code = async |request: &[u8]| {
            let answer = exchange(link, request).await;
            Message::from_vec(&answer)
                .expect("a message")
                .metadata
                .response_code
        };
        // A header that promises a question, and none.
        let cut = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
        assert_eq!(code(cut).await, ResponseCode::FormErr);
        let none = b"\x12\x34\x01\0\0\0\0\0\0\0\0\0";
        assert_eq!(code(none).await, ResponseCode::FormErr);
        let mut notify = question("hearth.internal.", RecordType::SOA);
        notify.metadata.op_code = hickory_proto::op::OpCode::Notify;
        assert_eq!(
            code(&notify.to_vec().expect("bytes")).await,
            ResponseCode::NotImp
        );
        let mut newer = question("web-server.hearth.internal.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        // 16 is BADVERS in an answer without a signature.
        let newer = code(&newer.to_vec().expect("bytes")).await;
        assert_eq!(u16::from(newer), 16);
        let transfer = question("hearth.internal.", RecordType::AXFR);
        assert_eq!(
            code(&transfer.to_vec().expect("bytes")).await,
            ResponseCode::Refused
        );
    });
}

#[test]
fn dig_is_content() {
    if !has("dig") {
        return;
    }
    on_a_link(async |link| {
        link.configure_ipv4();
        link.configure_ipv6();
        for server in ["@10.9.0.1", "@fd09::1"] {
            for transport in ["+notcp", "+tcp"] {
                let words = [
                    server,
                    transport,
                    "+short",
                    "web-server.hearth.internal",
                    "A",
                ];
                assert_eq!(link.must("dig", &words).await, "10.9.0.5\n");
            }
            let words = [server, "+short", "-x", "fd09::5"];
            assert_eq!(
                link.must("dig", &words).await,
                "ip-10-9-0-5.hearth.internal.\n"
            );
        }
        let whole = link
            .must("dig", &["@10.9.0.1", "hearth.internal", "SOA"])
            .await;
        assert!(
            whole.contains("status: NOERROR") && whole.contains("flags: qr aa rd ra"),
            "{whole}"
        );
        assert!(!whole.contains("WARNING"), "{whole}");
    });
}
