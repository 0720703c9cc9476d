//! Rows of `volumes`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, strings, to_json, unsigned};
use crate::{
    events::NewEvent,
    time::Millis,
    volumes::model::{Attachment, Volume, VolumeState},
};

const SELECT: &str = "SELECT seq, id, owner, state, size_bytes, image_id, instance_id, device,
    delete_on_termination, read_only, create_time, tags, client_token, growing_to,
    snapshot_id FROM volumes";

const STATE_EVENT: &str = "volume.state";

/// Stores a new volume and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, volume: &mut Volume) -> DbResult<()> {
    let attachment = volume.attachment.as_ref();
    tx.prepare_cached(
        "INSERT INTO volumes (id, owner, state, size_bytes, image_id, instance_id, device,
            delete_on_termination, read_only, create_time, tags, client_token, growing_to,
            snapshot_id)
         VALUES (:id, :owner, :state, :size_bytes, :image_id, :instance_id, :device,
            :delete_on_termination, :read_only, :create_time, :tags, :client_token, :growing_to,
            :snapshot_id)",
    )?
    .execute(named_params! {
        ":id": volume.id,
        ":owner": volume.owner,
        ":state": volume.state,
        ":size_bytes": signed(volume.size_bytes),
        ":image_id": volume.image_id,
        ":instance_id": attachment.map(|a| &a.instance_id),
        ":device": attachment.map(|a| &a.device),
        ":delete_on_termination": attachment.is_some_and(|a| a.delete_on_termination),
        ":read_only": attachment.is_some_and(|a| a.read_only),
        ":create_time": volume.create_time.0,
        ":tags": to_json(&volume.tags)?,
        ":client_token": volume.client_token,
        ":growing_to": volume.growing_to.map(signed),
        ":snapshot_id": volume.snapshot_id,
    })?;
    volume.seq = tx.last_insert_rowid();
    tx.event(NewEvent::state(
        STATE_EVENT,
        &volume.owner,
        &volume.id,
        "",
        volume.state.word(),
    ));
    Ok(())
}

/// Stores what changes in a volume's life, and the event when its state differs.
pub fn update(tx: &mut Tx<'_>, before: &Volume, after: &Volume) -> DbResult<()> {
    let attachment = after.attachment.as_ref();
    tx.prepare_cached(
        "UPDATE volumes SET state = :state, size_bytes = :size_bytes,
            instance_id = :instance_id, device = :device,
            delete_on_termination = :delete_on_termination, read_only = :read_only,
            growing_to = :growing_to WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": after.id,
        ":state": after.state,
        ":size_bytes": signed(after.size_bytes),
        ":instance_id": attachment.map(|a| &a.instance_id),
        ":device": attachment.map(|a| &a.device),
        ":delete_on_termination": attachment.is_some_and(|a| a.delete_on_termination),
        ":read_only": attachment.is_some_and(|a| a.read_only),
        ":growing_to": after.growing_to.map(signed),
    })?;
    if before.state != after.state {
        let (from, to) = (before.state.word(), after.state.word());
        let told = match (attachment, &before.attachment) {
            (Some(now), _) => format!("attached to {}", now.instance_id),
            (None, Some(was)) => format!("detached from {}", was.instance_id),
            (None, None) => String::new(),
        };
        tx.event(
            NewEvent::state(STATE_EVENT, &after.owner, &after.id, from, to).because("", &told),
        );
    }
    Ok(())
}

/// Forgets a volume that is gone from the store, and tells so.
pub fn remove(tx: &mut Tx<'_>, volume: &Volume) -> DbResult<()> {
    tx.execute("DELETE FROM volumes WHERE id = ?1", [&volume.id])?;
    tx.event(NewEvent::state(
        STATE_EVENT,
        &volume.owner,
        &volume.id,
        volume.state.word(),
        "deleted",
    ));
    Ok(())
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Volume>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` volumes created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Volume>> {
    collect(
        connection,
        "WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        params![seq, limit],
    )
}

/// Those attached to an instance, in the order of their devices.
pub fn of_instance(connection: &Connection, instance_id: &str) -> DbResult<Vec<Volume>> {
    collect(
        connection,
        "WHERE instance_id = ?1 ORDER BY device",
        [instance_id],
    )
}

/// Those in a state.
pub fn in_state(connection: &Connection, state: VolumeState) -> DbResult<Vec<Volume>> {
    collect(connection, "WHERE state = ?1 ORDER BY seq", [state])
}

/// Those whose growing did not end.
pub fn growing(connection: &Connection) -> DbResult<Vec<Volume>> {
    collect(connection, "WHERE growing_to IS NOT NULL ORDER BY seq", [])
}

/// Ids of all.
pub fn ids(connection: &Connection) -> DbResult<Vec<String>> {
    strings(connection, "SELECT id FROM volumes")
}

/// Whether a volume is still being made from an image.
pub fn being_made_from(connection: &Connection, image_id: &str) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM volumes WHERE state = 'creating' AND image_id = ?1")?
        .query_row([image_id], |_| Ok(()))
        .optional()?
        .is_some())
}

/// Whether a volume is still being made from a snapshot.
pub fn being_made_from_snapshot(connection: &Connection, snapshot_id: &str) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM volumes WHERE state = 'creating' AND snapshot_id = ?1")?
        .query_row([snapshot_id], |_| Ok(()))
        .optional()?
        .is_some())
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Volume>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        Ok((volume(row)?, row.get::<_, String>(11)?))
    })?;
    rows.map(|row| {
        let (volume, tags) = row?;
        Ok(Volume {
            tags: from_json(&tags)?,
            ..volume
        })
    })
    .collect()
}

fn volume(row: &Row<'_>) -> rusqlite::Result<Volume> {
    let instance_id: Option<String> = row.get(6)?;
    let device: Option<String> = row.get(7)?;
    let (delete_on_termination, read_only) = (row.get(8)?, row.get(9)?);
    Ok(Volume {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        state: row.get(3)?,
        size_bytes: unsigned(row.get(4)?),
        image_id: row.get(5)?,
        attachment: instance_id
            .zip(device)
            .map(|(instance_id, device)| Attachment {
                instance_id,
                device,
                delete_on_termination,
                read_only,
            }),
        create_time: Millis(row.get(10)?),
        tags: Vec::new(),
        client_token: row.get(12)?,
        growing_to: row.get::<_, Option<i64>>(13)?.map(unsigned),
        snapshot_id: row.get(14)?,
    })
}
