//! Rows of `images`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, strings, to_json, unsigned};
use crate::{
    events::NewEvent,
    images::model::{Image, ImageDisk, ImageState},
    time::Millis,
};

const SELECT: &str = "SELECT seq, id, owner, name, description, state, architecture, kernel,
    initrd, kernel_args, has_root, root_size_bytes, create_time, tags, client_token,
    boot_protocol, source_instance_id, deprecation_time FROM images";

const STATE_EVENT: &str = "image.state";

/// Stores a new image and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, image: &mut Image) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO images (id, owner, name, description, state, architecture, kernel, initrd,
            kernel_args, has_root, root_size_bytes, create_time, tags, client_token,
            boot_protocol, source_instance_id, deprecation_time)
         VALUES (:id, :owner, :name, :description, :state, :architecture, :kernel, :initrd,
            :kernel_args, :has_root, :root_size_bytes, :create_time, :tags, :client_token,
            :boot_protocol, :source_instance_id, :deprecation_time)",
    )?
    .execute(named_params! {
        ":id": image.id,
        ":owner": image.owner,
        ":name": image.name,
        ":description": image.description,
        ":state": image.state,
        ":architecture": image.architecture,
        ":kernel": image.kernel,
        ":initrd": image.initrd,
        ":kernel_args": image.kernel_args,
        ":has_root": image.has_root,
        ":root_size_bytes": signed(image.root_size_bytes),
        ":create_time": image.create_time.0,
        ":tags": to_json(&image.tags)?,
        ":client_token": image.client_token,
        ":boot_protocol": image.boot_protocol,
        ":source_instance_id": image.source_instance_id,
        ":deprecation_time": image.deprecation_time.map(|time| time.0),
    })?;
    image.seq = tx.last_insert_rowid();
    insert_disks(tx, image)?;
    tx.event(NewEvent::state(
        STATE_EVENT,
        &image.owner,
        &image.id,
        "",
        image.state.word(),
    ));
    Ok(())
}

fn insert_disks(tx: &Tx<'_>, image: &Image) -> DbResult<()> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO image_disks (image_id, device, snapshot_id, size_bytes,
            delete_on_termination) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for disk in &image.disks {
        insert.execute(params![
            image.id,
            disk.device,
            disk.snapshot_id,
            signed(disk.size_bytes),
            disk.delete_on_termination,
        ])?;
    }
    Ok(())
}

fn disks(connection: &Connection, image_id: &str) -> DbResult<Vec<ImageDisk>> {
    let mut select = connection.prepare_cached(
        "SELECT device, snapshot_id, size_bytes, delete_on_termination FROM image_disks
         WHERE image_id = ?1 ORDER BY device",
    )?;
    let rows = select.query_map([image_id], |row| {
        Ok(ImageDisk {
            device: row.get(0)?,
            snapshot_id: row.get(1)?,
            size_bytes: unsigned(row.get(2)?),
            delete_on_termination: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The images, not deregistered, that have a disk of this snapshot.
pub fn of_snapshot(connection: &Connection, snapshot_id: &str) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT DISTINCT images.id FROM images JOIN image_disks ON image_id = images.id
         WHERE snapshot_id = ?1 AND state <> 'deregistered' ORDER BY images.seq",
    )?;
    let ids = select.query_map([snapshot_id], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Stores what changes in an image's life, and the event when its state differs.
pub fn update(tx: &mut Tx<'_>, before: &Image, after: &Image) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE images SET state = :state, kernel = :kernel, initrd = :initrd,
            kernel_args = :kernel_args, description = :description,
            boot_protocol = :boot_protocol,
            deprecation_time = :deprecation_time, root_size_bytes = :root_size_bytes WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": after.id,
        ":state": after.state,
        ":kernel": after.kernel,
        ":initrd": after.initrd,
        ":kernel_args": after.kernel_args,
        ":description": after.description,
        ":boot_protocol": after.boot_protocol,
        ":deprecation_time": after.deprecation_time.map(|time| time.0),
        ":root_size_bytes": signed(after.root_size_bytes),
    })?;
    if before.state != after.state {
        tx.event(NewEvent::state(
            STATE_EVENT,
            &after.owner,
            &after.id,
            before.state.word(),
            after.state.word(),
        ));
    }
    Ok(())
}

/// Forgets an image whose files are gone, and tells so.
pub fn remove(tx: &mut Tx<'_>, image: &Image) -> DbResult<()> {
    tx.execute("DELETE FROM image_disks WHERE image_id = ?1", [&image.id])?;
    tx.execute("DELETE FROM images WHERE id = ?1", [&image.id])?;
    super::permissions::forget(tx, &image.id)?;
    tx.event(NewEvent::state(
        STATE_EVENT,
        &image.owner,
        &image.id,
        image.state.word(),
        "deleted",
    ));
    Ok(())
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Image>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// The id of the owner's image of this name.
pub fn by_name(connection: &Connection, owner: &str, name: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached(
            "SELECT id FROM images WHERE owner = ?1 AND name = ?2 AND state <> 'deregistered'",
        )?
        .query_row([owner, name], |row| row.get(0))
        .optional()?)
}

/// At most `limit` images created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Image>> {
    collect(
        connection,
        "WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        params![seq, limit],
    )
}

/// Those in a state.
pub fn in_state(connection: &Connection, state: ImageState) -> DbResult<Vec<Image>> {
    collect(connection, "WHERE state = ?1 ORDER BY seq", [state])
}

/// Ids of all.
pub fn ids(connection: &Connection) -> DbResult<Vec<String>> {
    strings(connection, "SELECT id FROM images")
}

/// SHA-256 names of the kernels and initrds that new instances may need.
pub fn kernel_files(connection: &Connection) -> DbResult<Vec<String>> {
    strings(
        connection,
        "SELECT kernel FROM images WHERE state <> 'deregistered'
         UNION SELECT initrd FROM images WHERE state <> 'deregistered' AND initrd IS NOT NULL",
    )
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Image>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        Ok((image(row)?, row.get::<_, String>(13)?))
    })?;
    rows.map(|row| {
        let (image, tags) = row?;
        Ok(Image {
            tags: from_json(&tags)?,
            disks: disks(connection, &image.id)?,
            ..image
        })
    })
    .collect()
}

fn image(row: &Row<'_>) -> rusqlite::Result<Image> {
    Ok(Image {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        name: row.get(3)?,
        description: row.get(4)?,
        state: row.get(5)?,
        architecture: row.get(6)?,
        kernel: row.get(7)?,
        initrd: row.get(8)?,
        kernel_args: row.get(9)?,
        has_root: row.get(10)?,
        root_size_bytes: unsigned(row.get(11)?),
        create_time: Millis(row.get(12)?),
        tags: Vec::new(),
        client_token: row.get(14)?,
        boot_protocol: row.get(15)?,
        disks: Vec::new(),
        source_instance_id: row.get(16)?,
        deprecation_time: row.get::<_, Option<i64>>(17)?.map(Millis),
    })
}
