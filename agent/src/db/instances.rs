//! Rows of `instances`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, strings, to_json, unsigned};
use crate::{
    events::NewEvent,
    instances::{
        metadata_options::MetadataOptions,
        model::{Instance, Launch, StateReason},
        state::InstanceState,
    },
    tap_services::names,
    time::Millis,
};

/// Columns in the order in which [`raw`] reads them.
const SELECT: &str = "SELECT seq, id, owner, image_id, instance_type, state, reason_code,
    reason_message, vcpus, memory_bytes, kernel, initrd, kernel_args, user_data, tags,
    client_token, root_device, launch_time, launched, operation, vmm_pid, ended,
    boot_protocol, interfaces, reservation_id, launch_index, key_name, public_key,
    metadata_options FROM instances";

/// Type of the events about states.
pub const STATE_EVENT: &str = "instance.state";

/// Stores a new instance and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, instance: &mut Instance) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO instances (id, owner, image_id, instance_type, state, reason_code,
            reason_message, vcpus, memory_bytes, kernel, initrd, kernel_args, user_data, tags,
            client_token, root_device, launch_time, launched, operation, vmm_pid, ended,
            boot_protocol, interfaces, reservation_id, launch_index, key_name, public_key,
            metadata_options, dns_label)
         VALUES (:id, :owner, :image_id, :instance_type, :state, :reason_code, :reason_message,
            :vcpus, :memory_bytes, :kernel, :initrd, :kernel_args, :user_data, :tags,
            :client_token, :root_device, :launch_time, :launched, :operation, :vmm_pid, :ended,
            :boot_protocol, :interfaces, :reservation_id, :launch_index, :key_name, :public_key,
            :metadata_options, :dns_label)",
    )?
    .execute(named_params! {
        ":id": instance.id,
        ":owner": instance.owner,
        ":image_id": instance.image_id,
        ":instance_type": instance.instance_type,
        ":state": instance.state,
        ":reason_code": instance.reason.code,
        ":reason_message": instance.reason.message,
        ":vcpus": instance.vcpus,
        ":memory_bytes": signed(instance.memory_bytes),
        ":kernel": instance.kernel,
        ":initrd": instance.initrd,
        ":kernel_args": instance.kernel_args,
        ":user_data": instance.user_data,
        ":tags": to_json(&instance.tags)?,
        ":client_token": instance.client_token,
        ":root_device": instance.root_device,
        ":launch_time": instance.launch_time.0,
        ":launched": instance.launched,
        ":operation": to_json(&instance.operation)?,
        ":vmm_pid": instance.vmm_pid,
        ":ended": instance.ended.map(|time| time.0),
        ":boot_protocol": instance.boot_protocol,
        ":interfaces": to_json(&instance.interfaces)?,
        ":reservation_id": instance.launch.reservation_id,
        ":launch_index": instance.launch.index,
        ":key_name": instance.launch.key_name,
        ":public_key": instance.launch.public_key,
        ":metadata_options": to_json(&instance.metadata_options)?,
        ":dns_label": names::label_of(&instance.tags),
    })?;
    instance.seq = tx.last_insert_rowid();
    tx.event(NewEvent::state(
        STATE_EVENT,
        &instance.owner,
        &instance.id,
        "",
        instance.state.word(),
    ));
    Ok(())
}

/// Stores what changes in an instance's life, and the event when its state differs.
pub fn update(tx: &mut Tx<'_>, before: &Instance, after: &Instance) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE instances SET state = :state, reason_code = :reason_code,
            reason_message = :reason_message, launch_time = :launch_time, launched = :launched,
            operation = :operation, vmm_pid = :vmm_pid, ended = :ended WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": after.id,
        ":state": after.state,
        ":reason_code": after.reason.code,
        ":reason_message": after.reason.message,
        ":launch_time": after.launch_time.0,
        ":launched": after.launched,
        ":operation": to_json(&after.operation)?,
        ":vmm_pid": after.vmm_pid,
        ":ended": after.ended.map(|time| time.0),
    })?;
    if before.state != after.state {
        tx.event(
            NewEvent::state(
                STATE_EVENT,
                &after.owner,
                &after.id,
                before.state.word(),
                after.state.word(),
            )
            .because(&after.reason.code, &after.reason.message),
        );
    }
    Ok(())
}

/// Changes how an instance may use the metadata service.
pub fn set_metadata_options(tx: &Tx<'_>, id: &str, options: &MetadataOptions) -> DbResult<()> {
    tx.prepare_cached("UPDATE instances SET metadata_options = ?2 WHERE id = ?1")?
        .execute(params![id, to_json(options)?])?;
    Ok(())
}

/// Forgets an instance.
pub fn remove(tx: &mut Tx<'_>, id: &str) -> DbResult<()> {
    tx.execute("DELETE FROM instances WHERE id = ?1", [id])?;
    Ok(())
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Instance>> {
    let row = connection
        .prepare_cached(&format!("{SELECT} WHERE id = ?1"))?
        .query_row([id], raw)
        .optional()?;
    row.map(Raw::finish).transpose()
}

/// At most `limit` instances created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Instance>> {
    collect(
        connection,
        "WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        params![seq, limit],
    )
}

/// All that are not terminated.
pub fn living(connection: &Connection) -> DbResult<Vec<Instance>> {
    collect(connection, "WHERE state <> 'terminated' ORDER BY seq", [])
}

/// Those that were terminated before `time`.
pub fn terminated_before(connection: &Connection, time: Millis) -> DbResult<Vec<Instance>> {
    collect(
        connection,
        "WHERE state = 'terminated' AND ended < ?1 ORDER BY seq",
        [time.0],
    )
}

/// Ids of all.
pub fn ids(connection: &Connection) -> DbResult<Vec<String>> {
    strings(connection, "SELECT id FROM instances")
}

/// Memory, in bytes, promised to guests that run or are about to.
pub fn committed_memory(connection: &Connection) -> DbResult<u64> {
    let sum: i64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(memory_bytes), 0) FROM instances
             WHERE state IN ('pending', 'running', 'stopping', 'shutting-down')",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(unsigned(sum))
}

/// SHA-256 names of the kernels and initrds that living instances start from.
pub fn kernel_files(connection: &Connection) -> DbResult<Vec<String>> {
    strings(
        connection,
        "SELECT kernel FROM instances WHERE state <> 'terminated'
         UNION SELECT initrd FROM instances WHERE state <> 'terminated' AND initrd IS NOT NULL",
    )
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Instance>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, raw)?;
    rows.map(|row| row?.finish()).collect()
}

/// A row whose JSON is not read yet.
struct Raw {
    instance: Instance,
    tags: String,
    operation: String,
    interfaces: String,
    metadata_options: String,
}

impl Raw {
    fn finish(self) -> DbResult<Instance> {
        Ok(Instance {
            tags: from_json(&self.tags)?,
            operation: from_json(&self.operation)?,
            interfaces: from_json(&self.interfaces)?,
            metadata_options: from_json(&self.metadata_options)?,
            ..self.instance
        })
    }
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    let state: InstanceState = row.get(5)?;
    Ok(Raw {
        instance: Instance {
            seq: row.get(0)?,
            id: row.get(1)?,
            owner: row.get(2)?,
            image_id: row.get(3)?,
            instance_type: row.get(4)?,
            state,
            reason: StateReason {
                code: row.get(6)?,
                message: row.get(7)?,
            },
            vcpus: row.get(8)?,
            memory_bytes: unsigned(row.get(9)?),
            kernel: row.get(10)?,
            initrd: row.get(11)?,
            kernel_args: row.get(12)?,
            user_data: row.get(13)?,
            tags: Vec::new(),
            client_token: row.get(15)?,
            root_device: row.get(16)?,
            launch_time: Millis(row.get(17)?),
            launched: row.get(18)?,
            operation: crate::instances::model::Operation::None,
            vmm_pid: row.get(20)?,
            ended: row.get::<_, Option<i64>>(21)?.map(Millis),
            boot_protocol: row.get(22)?,
            interfaces: Vec::new(),
            launch: Launch {
                reservation_id: row.get(24)?,
                index: row.get(25)?,
                key_name: row.get(26)?,
                public_key: row.get(27)?,
            },
            metadata_options: MetadataOptions::default(),
        },
        tags: row.get(14)?,
        operation: row.get(19)?,
        interfaces: row.get(23)?,
        metadata_options: row.get(28)?,
    })
}
