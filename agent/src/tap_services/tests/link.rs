//! A host's and a guest's network namespace, and the link between them.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader},
    net::{TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    config::Settings,
    db::{self, Db, DbError},
    ids::Kind,
    images::model::BootProtocol,
    instances::{
        metadata_options::MetadataOptions,
        model::{Instance, Launch, Operation, StateReason},
        state::InstanceState,
    },
    tags::Tag,
    tap_services::{Shared, TapConfig, TapIpv6, TapServices, dns::forward::Forwarder},
    time::Millis,
};

/// The name of the tap's stand-in.
const TAP: &str = "hth0123456789ab";
pub const INTERFACE: &str = "eni-0123456789abcdef0";
pub const MAC: &str = "02:00:00:00:00:05";
pub const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJTFkrkdL4tPGBhZs3W0M9IcmoAWKwn4PCjdrDZ4NgMN me";
pub const USER_DATA: &str = "#!/bin/sh\necho \u{fc}ber\n";

/// Both ends, and the services on the host's.
pub struct Link {
    pub dir: tempfile::TempDir,
    pub db: Db,
    pub instance_id: String,
    pub services: Option<TapServices>,
    pub shared: Arc<Shared>,
    guest: Guest,
}

/// A process that does nothing else than to be in the guest's namespace.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test on a link of its own, or says why it can't.
pub fn on_a_link(test: impl AsyncFnOnce(&mut Link) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    // A thread's namespace is its own, and that of the threads and processes that it starts.
    let inside = thread::spawn(move || {
        let namespace = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: network namespaces change nothing of memory or files that another thread has.
        if unsafe { rustix::thread::unshare_unsafe(namespace) }.is_err() {
            eprintln!("skipped: no network namespaces");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let mut link = Link::new().await;
            test(&mut link).await;
        });
    });
    if let Err(panic) = inside.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether a program is there to be used as a client; says so when it is not.
pub fn has(program: &str) -> bool {
    let there = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        eprintln!("left out: {program} is not installed");
    }
    there
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' ')));
}

impl Link {
    async fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let stdout = holder.stdout.take().expect("a pipe");
        let guest = Guest(holder);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "\n");

        let pid = guest.0.id();
        ip("link set lo up");
        ip(&format!(
            "link add {TAP} type veth peer name eth0 netns {pid}"
        ));
        ip(&format!(
            "link set {TAP} address 02:68:74:68:00:01 addrgenmode none"
        ));
        ip(&format!("addr add 10.9.0.1/32 dev {TAP}"));
        ip(&format!("addr add fe80::1/64 dev {TAP} nodad"));
        ip(&format!("addr add fd09::1/128 dev {TAP} nodad"));
        ip(&format!("link set {TAP} up"));
        ip(&format!("route add 10.9.0.5/32 dev {TAP}"));
        ip(&format!("route add fd09::5/128 dev {TAP}"));
        ip(&format!("neigh add 10.9.0.5 lladdr {MAC} dev {TAP}"));
        ip(&format!("neigh add fd09::5 lladdr {MAC} dev {TAP}"));
        // As the firewall does.
        run(Command::new("nft").arg(format!(
            "table inet test {{ chain pre {{ type nat hook prerouting priority dstnat;
                ip daddr 169.254.169.254 tcp dport 80 redirect to :{port};
                ip6 daddr fd00:ec2::254 tcp dport 80 redirect to :{port}; }}; }}",
            port = crate::firewall::METADATA_PORT
        )));

        let dir = tempfile::tempdir().expect("tempdir");
        let settings = Settings {
            state_dir: dir.path().to_owned(),
            socket: dir.path().join("socket"),
            vmm: dir.path().join("vmm"),
            region: Some("rack-7".to_owned()),
        };
        let db = Db::open(&settings.database()).expect("database");
        let mut shared = Shared::open(&settings, db.clone()).expect("shared");
        Arc::get_mut(&mut shared).expect("nobody else's").forwarder =
            Forwarder::new(dir.path().join("resolv.conf"));
        let instance_id = Kind::Instance.new_id().expect("random");
        let mut link = Self {
            services: None,
            dir,
            db,
            instance_id,
            shared,
            guest,
        };
        link.rows().await;
        link.start();
        link.ip("link set lo up");
        link.ip(&format!("link set eth0 address {MAC}"));
        link
    }

    /// (Re)starts the services.
    pub fn start(&mut self) {
        let config = TapConfig {
            interface_id: INTERFACE.to_owned(),
            tap: TAP.to_owned(),
            mac: [2, 0, 0, 0, 0, 5],
            mtu: 1400,
            ipv4: [10, 9, 0, 5].into(),
            ipv4_range: "10.9.0.0/24".parse().expect("range"),
            ipv4_gateway: [10, 9, 0, 1].into(),
            ipv6: Some(TapIpv6 {
                address: "fd09::5".parse().expect("address"),
                range: "fd09::/64".parse().expect("range"),
                gateway: "fd09::1".parse().expect("address"),
            }),
        };
        self.services = Some(TapServices::start(config, &self.shared));
    }

    async fn rows(&mut self) {
        let id = self.instance_id.clone();
        self.db
            .write(move |tx| {
                tx.execute_batch(
                    "INSERT INTO networks (id, owner, name, ipv4_range, ipv6_range, mtu, nat,
                        is_default, dns_domain, create_time, tags, client_token)
                     VALUES ('net-1', 'local', 'a', '10.9.0.0/24', 'fd09::/64', 1400, 1, 1,
                            'hearth.internal', 0, '[]', ''),
                        ('net-2', 'local', 'b', '10.8.0.0/24', 'fd08::/64', 1400, 1, 0,
                            'hearth.internal', 0, '[]', '');
                     INSERT INTO address_pools (id, ipv4_range, description, create_time)
                        VALUES ('pool-1', '192.0.2.0/28', '', 0);
                     INSERT INTO security_groups (id, owner, network_id, name, description,
                        create_time, tags, client_token)
                     VALUES ('sg-1', 'local', 'net-1', 'default', '', 0, '[]', ''),
                        ('sg-2', 'local', 'net-1', 'web', '', 0, '[]', '');",
                )
                .map_err(DbError::from)?;
                let mut it = instance(&id, "Web Server");
                it.tags.push(Tag {
                    key: "team".to_owned(),
                    value: "blue sky".to_owned(),
                });
                db::instances::insert(tx, &mut it)?;
                for (other, name) in [("i-2", "db"), ("i-3", "db"), ("i-4", "secret")] {
                    db::instances::insert(tx, &mut instance(other, name))?;
                }
                tx.execute_batch(&format!(
                    "INSERT INTO network_interfaces (id, owner, network_id, instance_id,
                        device_index, mac, ipv4, ipv6, tap, description, create_time)
                     VALUES ('{INTERFACE}', 'local', 'net-1', '{id}', 0, '{MAC}', '10.9.0.5',
                            'fd09::5', '{TAP}', '', 0),
                        ('eni-2', 'local', 'net-1', 'i-2', 0, 'b', '10.9.0.6', 'fd09::6', 'hth2',
                            '', 0),
                        ('eni-3', 'local', 'net-1', 'i-3', 0, 'c', '10.9.0.7', NULL, 'hth3', '', 0),
                        ('eni-4', 'local', 'net-2', 'i-4', 0, 'd', '10.8.0.6', NULL, 'hth4', '', 0);
                     INSERT INTO interface_groups VALUES ('{INTERFACE}', 'sg-1'),
                        ('{INTERFACE}', 'sg-2');
                     INSERT INTO addresses (id, owner, public_ipv4, pool_id, interface_id, tags,
                        client_token)
                     VALUES ('eipalloc-1', 'local', '192.0.2.3', 'pool-1', '{INTERFACE}', '[]', '')"
                ))
                .map_err(DbError::from)
            })
            .await
            .expect("rows");
    }

    /// Changes how the instance may use the metadata service.
    pub async fn options(&self, options: MetadataOptions) {
        let id = self.instance_id.clone();
        self.db
            .write(move |tx| db::instances::set_metadata_options(tx, &id, &options))
            .await
            .expect("changed");
    }

    /// Runs a program of the guest's; what it prints, and whether it ended well.
    pub async fn guest(&self, program: impl AsRef<OsStr>, words: &[&str]) -> (bool, String) {
        let output = tokio::process::Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.guest.0.id()))
            .arg(program)
            .args(words)
            .kill_on_drop(true)
            .output()
            .await
            .expect("nsenter");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        (output.status.success(), text)
    }

    /// Runs a program of the guest's that must end well.
    pub async fn must(&self, program: impl AsRef<OsStr>, words: &[&str]) -> String {
        let (ended_well, text) = self.guest(program, words).await;
        assert!(ended_well, "{words:?}: {text}");
        text
    }

    /// Runs `ip` in the guest's namespace.
    pub fn ip(&self, words: &str) -> String {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.guest.0.id()))
            .arg("ip")
            .args(words.split(' '));
        run(&mut command)
    }

    /// Does something in the guest's namespace: sockets opened so stay in there.
    async fn enter<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.guest.0.id())).expect("ns");
        let inside = thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).expect("setns");
            what()
        });
        // Not on this thread: what is done may wait for the services that run here.
        while !inside.is_finished() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        inside.join().expect("it panicked")
    }

    /// A guest's socket.
    pub async fn guest_udp(&self, address: &'static str) -> tokio::net::UdpSocket {
        let socket = self
            .enter(move || UdpSocket::bind(address))
            .await
            .expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        tokio::net::UdpSocket::from_std(socket).expect("socket")
    }

    /// A guest's connection.
    pub async fn guest_tcp(&self, address: &'static str) -> TcpStream {
        let stream = self
            .enter(move || TcpStream::connect(address))
            .await
            .expect("connect");
        stream.set_nonblocking(true).expect("nonblocking");
        stream
    }

    /// Gives the guest what DHCP would.
    pub fn configure_ipv4(&self) {
        self.ip("link set eth0 up");
        self.ip("addr add 10.9.0.5/24 dev eth0");
        self.ip("route add default via 10.9.0.1");
    }

    /// The same for IPv6.
    pub fn configure_ipv6(&self) {
        self.ip("link set eth0 up");
        self.ip("addr add fd09::5/128 dev eth0 nodad");
        self.ip("route add default via fe80::1 dev eth0");
    }
}

fn instance(id: &str, name: &str) -> Instance {
    Instance {
        seq: 0,
        id: id.to_owned(),
        owner: "local".to_owned(),
        image_id: "img-0123456789abcdef0".to_owned(),
        instance_type: "t.micro".to_owned(),
        state: InstanceState::Running,
        reason: StateReason::none(),
        vcpus: 1,
        memory_bytes: 128 << 20,
        kernel: String::new(),
        initrd: None,
        kernel_args: String::new(),
        boot_protocol: BootProtocol::Auto,
        interfaces: Vec::new(),
        user_data: USER_DATA.to_owned(),
        tags: vec![Tag {
            key: "Name".to_owned(),
            value: name.to_owned(),
        }],
        client_token: String::new(),
        root_device: None,
        launch_time: Millis(1_764_057_600_000),
        launched: true,
        operation: Operation::None,
        vmm_pid: None,
        ended: None,
        launch: Launch {
            reservation_id: "r-0123456789abcdef0".to_owned(),
            index: 3,
            key_name: "my key".to_owned(),
            public_key: KEY.to_owned(),
        },
        metadata_options: MetadataOptions::default(),
    }
}
