//! Tables, and how older files become current ones: `PRAGMA user_version` counts the steps
//! already taken; each step is one transaction.

use rusqlite::Connection;

use super::{DbError, DbResult};

/// One entry per version; never change an entry that was released, add one.
const STEPS: &[&str] = &[
    // 1
    "CREATE TABLE instances (
        seq            INTEGER PRIMARY KEY AUTOINCREMENT,
        id             TEXT NOT NULL UNIQUE,
        owner          TEXT NOT NULL,
        image_id       TEXT NOT NULL,
        instance_type  TEXT NOT NULL,
        state          TEXT NOT NULL,
        reason_code    TEXT NOT NULL,
        reason_message TEXT NOT NULL,
        vcpus          INTEGER NOT NULL,
        memory_bytes   INTEGER NOT NULL,
        kernel         TEXT NOT NULL,
        initrd         TEXT,
        kernel_args    TEXT NOT NULL,
        boot_protocol  TEXT NOT NULL,
        interfaces     TEXT NOT NULL,
        user_data      TEXT NOT NULL,
        tags           TEXT NOT NULL,
        client_token   TEXT NOT NULL,
        root_device    TEXT,
        launch_time    INTEGER NOT NULL,
        launched       INTEGER NOT NULL,
        operation      TEXT NOT NULL,
        vmm_pid        INTEGER,
        ended          INTEGER
    ) STRICT;
    CREATE INDEX instances_by_state ON instances (state);

    CREATE TABLE volumes (
        seq                   INTEGER PRIMARY KEY AUTOINCREMENT,
        id                    TEXT NOT NULL UNIQUE,
        owner                 TEXT NOT NULL,
        state                 TEXT NOT NULL,
        size_bytes            INTEGER NOT NULL,
        image_id              TEXT,
        instance_id           TEXT REFERENCES instances (id),
        device                TEXT,
        delete_on_termination INTEGER NOT NULL,
        read_only             INTEGER NOT NULL,
        create_time           INTEGER NOT NULL,
        tags                  TEXT NOT NULL,
        client_token          TEXT NOT NULL,
        growing_to            INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX volumes_by_device ON volumes (instance_id, device)
        WHERE instance_id IS NOT NULL;
    CREATE INDEX volumes_by_state ON volumes (state);

    CREATE TABLE images (
        seq             INTEGER PRIMARY KEY AUTOINCREMENT,
        id              TEXT NOT NULL UNIQUE,
        owner           TEXT NOT NULL,
        name            TEXT NOT NULL,
        description     TEXT NOT NULL,
        state           TEXT NOT NULL,
        architecture    TEXT NOT NULL,
        kernel          TEXT NOT NULL,
        initrd          TEXT,
        kernel_args     TEXT NOT NULL,
        boot_protocol   TEXT NOT NULL,
        has_root        INTEGER NOT NULL,
        root_size_bytes INTEGER NOT NULL,
        create_time     INTEGER NOT NULL,
        tags            TEXT NOT NULL,
        client_token    TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX images_by_name ON images (owner, name) WHERE state <> 'deregistered';

    CREATE TABLE events (
        sequence       INTEGER PRIMARY KEY AUTOINCREMENT,
        time           INTEGER NOT NULL,
        type           TEXT NOT NULL,
        resource_id    TEXT NOT NULL,
        previous_state TEXT NOT NULL,
        state          TEXT NOT NULL,
        reason_code    TEXT NOT NULL,
        message        TEXT NOT NULL
    ) STRICT;

    CREATE TABLE client_tokens (
        owner        TEXT NOT NULL,
        operation    TEXT NOT NULL,
        token        TEXT NOT NULL,
        request_hash TEXT NOT NULL,
        result       TEXT NOT NULL,
        created      INTEGER NOT NULL,
        PRIMARY KEY (owner, operation, token)
    ) STRICT, WITHOUT ROWID;",
    // 2: accounts. Whatever was there is the local one's.
    "ALTER TABLE events ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
    CREATE TABLE permissions (
        resource_id TEXT NOT NULL,
        account     TEXT NOT NULL,
        PRIMARY KEY (resource_id, account)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX permissions_by_account ON permissions (account);",
    // 3: classes of volumes, burst credits, modifications.
    "ALTER TABLE volumes ADD COLUMN class TEXT NOT NULL DEFAULT 'gp3';
    ALTER TABLE volumes ADD COLUMN iops INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE volumes ADD COLUMN throughput_mib INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE volumes ADD COLUMN credits INTEGER;
    ALTER TABLE volumes ADD COLUMN credits_at INTEGER;
    ALTER TABLE volumes ADD COLUMN modification TEXT;",
    // 4: volumes come to and go from running instances.
    "ALTER TABLE volumes ADD COLUMN attachment_state TEXT NOT NULL DEFAULT 'attached';
    ALTER TABLE volumes ADD COLUMN detach_deadline INTEGER;",
    // 5: snapshots, and the images that are made of them.
    "CREATE TABLE snapshots (
        seq             INTEGER PRIMARY KEY AUTOINCREMENT,
        id              TEXT NOT NULL UNIQUE,
        owner           TEXT NOT NULL,
        state           TEXT NOT NULL,
        state_message   TEXT NOT NULL,
        volume_id       TEXT NOT NULL,
        source_id       TEXT,
        size_bytes      INTEGER NOT NULL,
        description     TEXT NOT NULL,
        create_time     INTEGER NOT NULL,
        tags            TEXT NOT NULL,
        client_token    TEXT NOT NULL,
        starts_instance TEXT
    ) STRICT;
    CREATE INDEX snapshots_by_state ON snapshots (state);
    CREATE TABLE image_disks (
        image_id              TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        device                TEXT NOT NULL,
        snapshot_id           TEXT NOT NULL,
        size_bytes            INTEGER NOT NULL,
        delete_on_termination INTEGER NOT NULL,
        PRIMARY KEY (image_id, device)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_disks_by_snapshot ON image_disks (snapshot_id);
    ALTER TABLE volumes ADD COLUMN snapshot_id TEXT;",
    // 6: images of instances, deprecated images.
    "ALTER TABLE images ADD COLUMN source_instance_id TEXT;
    ALTER TABLE images ADD COLUMN deprecation_time INTEGER;",
    // 7: virtual networks, what is in them, and public addresses.
    "CREATE TABLE networks (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        name         TEXT NOT NULL,
        ipv4_range   TEXT NOT NULL,
        ipv6_range   TEXT,
        mtu          INTEGER NOT NULL,
        nat          INTEGER NOT NULL,
        is_default   INTEGER NOT NULL,
        dns_domain   TEXT NOT NULL,
        create_time  INTEGER NOT NULL,
        tags         TEXT NOT NULL,
        client_token TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX networks_by_name ON networks (owner, name) WHERE name <> '';
    CREATE UNIQUE INDEX networks_default ON networks (owner) WHERE is_default = 1;
    CREATE TABLE network_interfaces (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        network_id   TEXT NOT NULL REFERENCES networks (id),
        instance_id  TEXT NOT NULL REFERENCES instances (id),
        device_index INTEGER NOT NULL,
        mac          TEXT NOT NULL UNIQUE,
        ipv4         TEXT NOT NULL,
        ipv6         TEXT,
        tap          TEXT NOT NULL UNIQUE,
        description  TEXT NOT NULL,
        create_time  INTEGER NOT NULL,
        UNIQUE (network_id, ipv4),
        UNIQUE (network_id, ipv6),
        UNIQUE (instance_id, device_index)
    ) STRICT;
    CREATE TABLE address_pools (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        id          TEXT NOT NULL UNIQUE,
        ipv4_range  TEXT NOT NULL UNIQUE,
        description TEXT NOT NULL,
        create_time INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE addresses (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        public_ipv4  TEXT NOT NULL UNIQUE,
        pool_id      TEXT NOT NULL REFERENCES address_pools (id),
        interface_id TEXT UNIQUE REFERENCES network_interfaces (id) ON DELETE SET NULL,
        tags         TEXT NOT NULL,
        client_token TEXT NOT NULL
    ) STRICT;
    CREATE TABLE port_forwards (
        seq           INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT NOT NULL UNIQUE,
        owner         TEXT NOT NULL,
        protocol      TEXT NOT NULL,
        host_port     INTEGER NOT NULL,
        interface_id  TEXT NOT NULL REFERENCES network_interfaces (id) ON DELETE CASCADE,
        instance_port INTEGER NOT NULL,
        description   TEXT NOT NULL,
        client_token  TEXT NOT NULL,
        UNIQUE (protocol, host_port)
    ) STRICT;",
    // 8: security groups.
    "CREATE TABLE security_groups (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        network_id   TEXT NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
        name         TEXT NOT NULL,
        description  TEXT NOT NULL,
        create_time  INTEGER NOT NULL,
        tags         TEXT NOT NULL,
        client_token TEXT NOT NULL,
        UNIQUE (network_id, name)
    ) STRICT;
    CREATE TABLE security_group_rules (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        id          TEXT NOT NULL UNIQUE,
        group_id    TEXT NOT NULL REFERENCES security_groups (id) ON DELETE CASCADE,
        direction   TEXT NOT NULL,
        protocol    INTEGER,
        from_port   INTEGER,
        to_port     INTEGER,
        peer_kind   TEXT NOT NULL,
        peer        TEXT NOT NULL,
        description TEXT NOT NULL
    ) STRICT;
    CREATE INDEX security_group_rules_by_group ON security_group_rules (group_id);
    CREATE INDEX security_group_rules_by_peer ON security_group_rules (peer);
    CREATE TABLE interface_groups (
        interface_id TEXT NOT NULL REFERENCES network_interfaces (id) ON DELETE CASCADE,
        group_id     TEXT NOT NULL REFERENCES security_groups (id),
        PRIMARY KEY (interface_id, group_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX interface_groups_by_group ON interface_groups (group_id);
    CREATE TABLE prefix_lists (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        name         TEXT NOT NULL,
        family       TEXT NOT NULL,
        max_entries  INTEGER NOT NULL,
        version      INTEGER NOT NULL,
        entries      TEXT NOT NULL,
        tags         TEXT NOT NULL,
        client_token TEXT NOT NULL
    ) STRICT;
    CREATE TABLE pending_cuts (
        seq       INTEGER PRIMARY KEY AUTOINCREMENT,
        object_id TEXT NOT NULL
    ) STRICT;",
    // 9: SSH keys and the metadata service.
    "CREATE TABLE key_pairs (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        id          TEXT NOT NULL UNIQUE,
        owner       TEXT NOT NULL,
        name        TEXT NOT NULL,
        key_type    TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        public_key  TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        tags        TEXT NOT NULL,
        UNIQUE (owner, name)
    ) STRICT;
    ALTER TABLE instances ADD COLUMN key_name TEXT NOT NULL DEFAULT '';
    ALTER TABLE instances ADD COLUMN public_key TEXT NOT NULL DEFAULT '';
    ALTER TABLE instances ADD COLUMN metadata_options TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE instances ADD COLUMN reservation_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE instances ADD COLUMN launch_index INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE instances ADD COLUMN dns_label TEXT;
    CREATE INDEX instances_by_dns_label ON instances (dns_label) WHERE dns_label IS NOT NULL;",
    // 10: flow logs. Whose taps those were that are gone, until their last packets are recorded.
    "CREATE TABLE flow_logs (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        owner        TEXT NOT NULL,
        resource_id  TEXT NOT NULL,
        traffic_type TEXT NOT NULL,
        interval     INTEGER NOT NULL,
        create_time  INTEGER NOT NULL,
        tags         TEXT NOT NULL,
        client_token TEXT NOT NULL,
        UNIQUE (resource_id, traffic_type)
    ) STRICT;
    CREATE TABLE departed_interfaces (
        tap         TEXT PRIMARY KEY,
        id          TEXT NOT NULL,
        owner       TEXT NOT NULL,
        network_id  TEXT NOT NULL,
        depart_time INTEGER NOT NULL
    ) STRICT;",
];

/// Takes the steps that are missing.
pub fn migrate(connection: &mut Connection) -> DbResult<()> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = u32::try_from(STEPS.len()).expect("a handful of steps");
    if found > known {
        return Err(DbError::NewerSchema { found, known });
    }
    for (done, step) in (1..=known).zip(STEPS).skip(found as usize) {
        let tx = connection.transaction()?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", done)?;
        tx.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_changes_nothing_the_second_time() {
        let mut connection = Connection::open_in_memory().expect("open");
        migrate(&mut connection).expect("first");
        connection
            .execute(
                "INSERT INTO client_tokens VALUES ('o', 'op', 't', 'h', '[]', 1)",
                [],
            )
            .expect("insert");
        migrate(&mut connection).expect("second");
        let count: u32 = connection
            .query_row("SELECT count(*) FROM client_tokens", [], |row| row.get(0))
            .expect("count");
        assert_eq!(count, 1);
    }

    #[test]
    fn volumes_from_before_there_were_classes_are_gp3() {
        let mut connection = Connection::open_in_memory().expect("open");
        connection.execute_batch(STEPS[0]).expect("the first step");
        connection
            .execute_batch(
                "PRAGMA user_version = 1;
                INSERT INTO volumes VALUES (1, 'vol-1', 'o', 'available', 512, NULL, NULL, NULL,
                    0, 0, 1, '[]', '', 1024)",
            )
            .expect("a volume");
        migrate(&mut connection).expect("migrate");
        let volumes = crate::db::volumes::being_modified(&connection).expect("volumes");
        assert_eq!(volumes.len(), 1, "what was being made larger still is");
        let volume = &volumes[0];
        assert_eq!((volume.class.name.as_str(), volume.class.iops), ("gp3", 0));
        assert_eq!((volume.credits, volume.modification.clone()), (None, None));
    }

    #[test]
    fn a_database_of_a_newer_hearth_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().expect("open");
        connection
            .pragma_update(None, "user_version", 99)
            .expect("set");
        let error = migrate(&mut connection).expect_err("newer");
        assert!(matches!(error, DbError::NewerSchema { found: 99, .. }));
    }
}
