//! Rows of `volumes`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, strings, to_json, unsigned};
use crate::{
    events::NewEvent,
    time::Millis,
    volumes::{
        classes::choice::ClassChoice,
        model::{Attachment, AttachmentState, Credits, Volume, VolumeState},
    },
};

const SELECT: &str = "SELECT seq, id, owner, state, size_bytes, image_id, instance_id, device,
    delete_on_termination, read_only, create_time, tags, client_token, growing_to,
    class, iops, throughput_mib, credits, credits_at, modification, attachment_state,
    detach_deadline, snapshot_id FROM volumes";

const STATE_EVENT: &str = "volume.state";

const ATTACHMENT_EVENT: &str = "volume.attachment";

/// Stores a new volume and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, volume: &mut Volume) -> DbResult<()> {
    let attachment = volume.attachment.as_ref();
    tx.prepare_cached(
        "INSERT INTO volumes (id, owner, state, size_bytes, image_id, instance_id, device,
            delete_on_termination, read_only, create_time, tags, client_token, growing_to,
            class, iops, throughput_mib, modification, snapshot_id)
         VALUES (:id, :owner, :state, :size_bytes, :image_id, :instance_id, :device,
            :delete_on_termination, :read_only, :create_time, :tags, :client_token, :growing_to,
            :class, :iops, :throughput_mib, :modification, :snapshot_id)",
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
        ":class": volume.class.name,
        ":iops": volume.class.iops,
        ":throughput_mib": volume.class.throughput_mib,
        ":modification": volume.modification.as_ref().map(to_json).transpose()?,
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
            growing_to = :growing_to, class = :class, iops = :iops,
            throughput_mib = :throughput_mib, modification = :modification,
            attachment_state = :attachment_state, detach_deadline = :detach_deadline
         WHERE id = :id",
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
        ":class": after.class.name,
        ":iops": after.class.iops,
        ":throughput_mib": after.class.throughput_mib,
        ":modification": after.modification.as_ref().map(to_json).transpose()?,
        ":attachment_state": attachment.map_or(AttachmentState::Attached, |a| a.state),
        ":detach_deadline": attachment.and_then(|a| a.detach_deadline).map(|when| when.0),
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

/// [`update`], and the event of a change in an attachment to a running instance; `why` is for
/// people.
pub fn update_attachment(
    tx: &mut Tx<'_>,
    before: &Volume,
    after: &Volume,
    why: &str,
) -> DbResult<()> {
    let word = |volume: &Volume| volume.attachment.as_ref().map_or("", |a| a.state.word());
    update(tx, before, after)?;
    if word(before) != word(after) {
        let event = NewEvent::state(
            ATTACHMENT_EVENT,
            &after.owner,
            &after.id,
            word(before),
            word(after),
        );
        tx.event(event.because("", why));
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

/// Those whose modification did not end.
pub fn being_modified(connection: &Connection) -> DbResult<Vec<Volume>> {
    collect(
        connection,
        "WHERE growing_to IS NOT NULL OR modification ->> 'state' = 'modifying' ORDER BY seq",
        [],
    )
}

/// Stores burst credits, apart from [`update`]: they come in while rows change. Those of another
/// class than the volume has by now are not stored.
pub fn set_credits(tx: &Tx<'_>, id: &str, class: &ClassChoice, credits: Credits) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE volumes SET credits = ?1, credits_at = ?2 WHERE id = ?3 AND class = ?4",
    )?
    .execute(params![signed(credits.count), credits.at.0, id, class.name])?;
    Ok(())
}

/// Forgets burst credits: the volume then has all that it may have.
pub fn clear_credits(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.prepare_cached("UPDATE volumes SET credits = NULL, credits_at = NULL WHERE id = ?1")?
        .execute([id])?;
    Ok(())
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
        let modification: Option<String> = row.get("modification")?;
        Ok((volume(row)?, row.get::<_, String>(11)?, modification))
    })?;
    rows.map(|row| {
        let (volume, tags, modification) = row?;
        Ok(Volume {
            tags: from_json(&tags)?,
            modification: modification.map(|text| from_json(&text)).transpose()?,
            ..volume
        })
    })
    .collect()
}

fn volume(row: &Row<'_>) -> rusqlite::Result<Volume> {
    let instance_id: Option<String> = row.get(6)?;
    let device: Option<String> = row.get(7)?;
    let (delete_on_termination, read_only) = (row.get(8)?, row.get(9)?);
    let state = row.get("attachment_state")?;
    let detach_deadline = row.get::<_, Option<i64>>("detach_deadline")?.map(Millis);
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
                state,
                detach_deadline,
            }),
        create_time: Millis(row.get(10)?),
        tags: Vec::new(),
        client_token: row.get(12)?,
        growing_to: row.get::<_, Option<i64>>(13)?.map(unsigned),
        class: ClassChoice {
            name: row.get("class")?,
            iops: row.get("iops")?,
            throughput_mib: row.get("throughput_mib")?,
        },
        credits: row
            .get::<_, Option<i64>>("credits")?
            .zip(row.get::<_, Option<i64>>("credits_at")?)
            .map(|(count, at)| Credits {
                count: unsigned(count),
                at: Millis(at),
            }),
        modification: None,
        snapshot_id: row.get("snapshot_id")?,
    })
}
