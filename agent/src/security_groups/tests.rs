//! Groups in a database, without an agent: what is stored, what the firewall is told, what counts.

use ipnet::IpNet;
use rusqlite::Connection;

use super::{
    MAX_RULES,
    authorize::{self, AuthorizeRequest},
    model::{Direction, Peer, Permission, Traffic},
    permission::{PeerRequest, PermissionRequest},
    policy, weight,
};
use crate::{
    db::{Db, DbError},
    error::{ApiResult, Reason},
    firewall::policy::{Change, Match, Peer as PolicyPeer},
};

const NETWORK: &str = "net-00000000000000001";
const WEB: &str = "sg-00000000000000001";
const DB: &str = "sg-00000000000000002";
const FAR: &str = "sg-00000000000000003";
const STRANGER: &str = "sg-00000000000000004";
const LIST: &str = "pl-00000000000000001";

/// Two groups in a network, one in another, one of another account, and a prefix list.
fn rows(connection: &Connection) -> Result<(), DbError> {
    let network = "INSERT INTO networks (id, owner, name, ipv4_range, ipv6_range, mtu, nat,
        is_default, dns_domain, create_time, tags, client_token)
        VALUES (?1, ?2, '', ?3, NULL, 1500, 1, 0, 'x', 0, '[]', '')";
    let group = "INSERT INTO security_groups (id, owner, network_id, name, description,
        create_time, tags, client_token) VALUES (?1, ?2, ?3, ?1, '', 0, '[]', '')";
    for (id, owner, range) in [
        (NETWORK, "local", "10.0.0.0/16"),
        ("net-2", "local", "10.1.0.0/16"),
        ("net-3", "other", "10.2.0.0/16"),
    ] {
        connection.execute(network, [id, owner, range])?;
    }
    for (id, owner, network) in [
        (WEB, "local", NETWORK),
        (DB, "local", NETWORK),
        (FAR, "local", "net-2"),
        (STRANGER, "other", "net-3"),
    ] {
        connection.execute(group, [id, owner, network])?;
    }
    connection.execute(
        "INSERT INTO prefix_lists (id, owner, name, family, max_entries, version, entries, tags,
            client_token) VALUES (?1, 'local', 'list', 'IPv4', 20, 1, ?2, '[]', '')",
        [LIST, r#"[{"block":"192.0.2.0/24","description":""}]"#],
    )?;
    Ok(())
}

async fn database(dir: &tempfile::TempDir) -> Db {
    let db = Db::open(&dir.path().join("db")).expect("open");
    db.write(|tx| rows(tx)).await.expect("rows");
    db
}

fn permission(protocol: &str, port: Option<i32>, peer: PeerRequest) -> PermissionRequest {
    PermissionRequest {
        protocol: protocol.to_owned(),
        from: port,
        to: port,
        peer: Some(peer),
        description: String::new(),
    }
}

async fn allow(db: &Db, permissions: Vec<PermissionRequest>) -> ApiResult<Change> {
    let request = AuthorizeRequest {
        group_id: WEB.to_owned(),
        direction: Direction::Ingress,
        permissions,
        dry_run: false,
    };
    let wanted = authorize::read_all(&request.permissions)?;
    let insert = db.write(move |tx| authorize::insert(tx, &request, wanted));
    insert.await.map(|(_, _, change)| change)
}

#[tokio::test]
async fn what_is_stored_comes_back_and_is_what_the_firewall_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let db = database(&dir).await;
    let everybody = || PeerRequest::Ipv4("0.0.0.0/0".to_owned());
    let permissions = vec![
        permission("tcp", Some(443), everybody()),
        permission("udp", None, PeerRequest::Ipv6("::/0".to_owned())),
        permission("icmp", None, PeerRequest::Group(DB.to_owned())),
        PermissionRequest {
            to: Some(4),
            ..permission("icmp", Some(3), PeerRequest::PrefixList(LIST.to_owned()))
        },
        permission("47", None, everybody()),
        permission("", None, PeerRequest::Group(WEB.to_owned())),
    ];
    let change = allow(&db, permissions).await.expect("authorized");
    let Change::PutGroup(id, told) = change else {
        panic!("{change:?}");
    };
    assert_eq!((id.as_str(), told.network.as_str()), (WEB, NETWORK));
    let block = |text: &str| PolicyPeer::Block(text.parse().expect("block"));
    let mut rules: Vec<_> = told.rules.values().collect();
    let expected = [
        (
            Match::Ports {
                protocol: 6,
                first: 443,
                last: 443,
            },
            block("0.0.0.0/0"),
        ),
        (Match::Protocol(17), block("::/0")),
        (
            Match::Icmp {
                kind: None,
                code: None,
            },
            PolicyPeer::Group(DB.to_owned()),
        ),
        (
            Match::Icmp {
                kind: Some(3),
                code: Some(4),
            },
            PolicyPeer::PrefixList(LIST.to_owned()),
        ),
        (Match::Protocol(47), block("0.0.0.0/0")),
        (Match::All, PolicyPeer::Group(WEB.to_owned())),
    ];
    for (matches, peer) in expected {
        let found = rules
            .iter()
            .position(|rule| rule.matches == matches && rule.peer == peer);
        rules.remove(found.unwrap_or_else(|| panic!("no {matches:?} {peer:?}: {rules:?}")));
    }
    assert!(rules.is_empty(), "{rules:?}");
    // And it is the same after a restart.
    let (groups, lists) = db.read(policy::load).await.expect("load");
    assert_eq!((&groups[WEB], groups.len()), (&told, 4));
    let list: Vec<IpNet> = lists[LIST].iter().copied().collect();
    assert_eq!(list, ["192.0.2.0/24".parse::<IpNet>().expect("block")]);
}

#[tokio::test]
async fn rules_name_groups_of_their_own_network_and_lists_of_their_own_account() {
    let dir = tempfile::tempdir().expect("tempdir");
    let db = database(&dir).await;
    let group = |id: &str| PeerRequest::Group(id.to_owned());
    let list = PeerRequest::PrefixList(LIST.to_owned());
    let nobody = PeerRequest::PrefixList("pl-0123456789abcdef0".to_owned());
    for (protocol, peer, reason) in [
        ("tcp", group(FAR), Reason::InvalidParameterValue),
        ("tcp", group(STRANGER), Reason::SecurityGroupNotFound),
        (
            "tcp",
            group("sg-0123456789abcdef0"),
            Reason::SecurityGroupNotFound,
        ),
        ("tcp", nobody, Reason::PrefixListNotFound),
        ("icmpv6", list, Reason::InvalidParameterCombination),
    ] {
        let refused = allow(&db, vec![permission(protocol, None, peer)]).await;
        assert_eq!(refused.expect_err("refused").reason(), reason);
    }
    let (groups, _) = db.read(policy::load).await.expect("load");
    assert!(groups[WEB].rules.is_empty(), "nothing was left");
}

#[tokio::test]
async fn a_prefix_list_weighs_as_much_as_it_may_hold() {
    let dir = tempfile::tempdir().expect("tempdir");
    let db = database(&dir).await;
    let list = |port| permission("tcp", Some(port), PeerRequest::PrefixList(LIST.to_owned()));
    allow(&db, vec![list(1), list(2), list(3)])
        .await
        .expect("3 times 20 are 60");
    let one = permission("tcp", Some(4), PeerRequest::Ipv4("10.0.0.0/8".to_owned()));
    let error = allow(&db, vec![one]).await.expect_err("the 61st");
    assert_eq!(error.reason(), Reason::RulesPerSecurityGroupLimitExceeded);
    let web = db
        .read(|c| super::get(c, WEB, "security_group_id"))
        .await
        .expect("group");
    let (ingress, egress) = db
        .read(move |c| {
            let of = |direction| weight(c, &web.rules, direction);
            Ok::<_, crate::error::ApiError>((of(Direction::Ingress)?, of(Direction::Egress)?))
        })
        .await
        .expect("weights");
    assert_eq!((ingress, egress), (MAX_RULES, 0));
}

#[tokio::test]
async fn a_rule_of_the_database_that_makes_no_sense_is_an_error_and_not_another_rule() {
    let dir = tempfile::tempdir().expect("tempdir");
    let db = database(&dir).await;
    db.write(|tx| {
        tx.execute(
            "INSERT INTO security_group_rules (id, group_id, direction, protocol, from_port,
                to_port, peer_kind, peer, description)
             VALUES ('sgr-1', ?1, 'ingress', 6, 90, 80, 'cidr', '0.0.0.0/0', '')",
            [WEB],
        )?;
        Ok::<_, DbError>(())
    })
    .await
    .expect("row");
    let error = db.read(policy::load).await.expect_err("malformed");
    assert!(matches!(error, DbError::Malformed(_)), "{error}");
}

#[test]
fn permissions_in_words_say_what_is_allowed() {
    for (traffic, words) in [
        (Traffic::All, "all traffic with 10.0.0.0/8"),
        (Traffic::Protocol(47), "protocol 47 with 10.0.0.0/8"),
        (Traffic::Protocol(6), "tcp with 10.0.0.0/8"),
        (
            Traffic::Ports {
                protocol: 17,
                first: 53,
                last: 60,
            },
            "udp 53-60 with 10.0.0.0/8",
        ),
        (
            Traffic::Icmp {
                protocol: 1,
                kind: 3,
                code: Some(4),
            },
            "icmp 3/4 with 10.0.0.0/8",
        ),
    ] {
        let peer = Peer::Block("10.0.0.0/8".parse().expect("block"));
        assert_eq!(Permission { traffic, peer }.to_string(), words);
    }
}
