//! SSH key pairs. Only public keys are kept: a private key is in the answer of the call that made
//! it, and nowhere else.

mod model;
mod public;

use rusqlite::Connection;
use ssh_key::{LineEnding, PrivateKey, private::Ed25519Keypair, private::KeypairData};

pub use self::model::KeyPair;
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
    query::page::{Page, Query},
    tags::{self, Tag},
    time::Millis,
};

/// Most characters of a key pair's name.
const MAX_NAME: usize = 255;

/// A new key pair and its private half, as OpenSSH keeps it in a file.
pub struct Created {
    pub key: KeyPair,
    pub private_key: String,
}

/// Makes an ed25519 key pair.
///
/// # Errors
/// `InvalidParameterValue` for a name or tags that can't be; `InvalidKeyPair.Duplicate`.
pub async fn create(
    context: &Context,
    owner: String,
    name: String,
    tags: Vec<Tag>,
) -> ApiResult<Created> {
    check_name(&name)?;
    tags::check(&tags, "tags")?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| ApiError::internal("asking the host for random numbers", error))?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    seed.fill(0);
    let failed = |error| ApiError::internal("making a key", error);
    let private = PrivateKey::new(pair, &name).map_err(failed)?;
    let private_key = private.to_openssh(LineEnding::LF).map_err(failed)?;
    let public = public::describe(private.public_key()).map_err(failed)?;
    let key = insert(context, KeyPair::new(owner, name, public, tags)?).await?;
    Ok(Created {
        key,
        private_key: private_key.to_string(),
    })
}

/// Takes a public key that somebody has already.
///
/// # Errors
/// As [`create`], and `InvalidKey.Format`.
pub async fn import(
    context: &Context,
    owner: String,
    name: String,
    public_key: &str,
    tags: Vec<Tag>,
) -> ApiResult<KeyPair> {
    check_name(&name)?;
    tags::check(&tags, "tags")?;
    let public = public::read(public_key, &name)
        .map_err(|problem| ApiError::field(Reason::KeyFormat, "public_key", problem))?;
    insert(context, KeyPair::new(owner, name, public, tags)?).await
}

async fn insert(context: &Context, mut key: KeyPair) -> ApiResult<KeyPair> {
    context
        .db
        .write(move |tx| {
            if db::key_pairs::by_name(tx, &key.owner, &key.name)?.is_some() {
                return Err(ApiError::field(
                    Reason::KeyPairDuplicate,
                    "key_name",
                    format!("there is a key pair {:?} already", shortened(&key.name)),
                ));
            }
            db::key_pairs::insert(tx, &mut key)?;
            Ok(key)
        })
        .await
}

/// Lists what is asked for. `names` are looked up among the account's own; each must be there.
pub async fn describe(
    context: &Context,
    owner: String,
    names: Vec<String>,
    query: impl FnOnce(Vec<String>) -> ApiResult<Query> + Send + 'static,
) -> ApiResult<Page<KeyPair>> {
    context
        .db
        .read(move |connection| {
            let mut ids = Vec::new();
            for (index, name) in names.iter().enumerate() {
                let field = format!("key_names[{index}]");
                let id = named(connection, &owner, name, &field)?.id;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            query(ids)?.page(connection, "key_names", get, db::key_pairs::after)
        })
        .await
}

/// Forgets one: by its id, or by its name among the account's own. Nothing happens when there is
/// none of this name, as in EC2.
///
/// # Errors
/// `InvalidKeyPair.NotFound` for an id that nobody has.
pub async fn delete(context: &Context, owner: String, id: String, name: String) -> ApiResult<()> {
    if id.is_empty() == name.is_empty() {
        return Err(ApiError::field(
            if id.is_empty() {
                Reason::MissingParameter
            } else {
                Reason::InvalidParameterCombination
            },
            "key_name",
            "give the name or the id of the key pair",
        ));
    }
    context
        .db
        .write(move |tx| {
            let key = if id.is_empty() {
                db::key_pairs::by_name(tx, &owner, &name)?
            } else {
                Some(get(tx, &id, "key_pair_id")?)
            };
            match key {
                Some(key) => Ok(db::key_pairs::remove(tx, &key.id)?),
                None => Ok(()),
            }
        })
        .await
}

/// The public key that an instance gets for a name; empty without a name.
///
/// # Errors
/// `InvalidKeyPair.NotFound`.
pub fn of_launch(connection: &Connection, owner: &str, name: &str) -> ApiResult<String> {
    if name.is_empty() {
        return Ok(String::new());
    }
    Ok(named(connection, owner, name, "key_name")?.public_key)
}

fn named(connection: &Connection, owner: &str, name: &str, field: &str) -> ApiResult<KeyPair> {
    db::key_pairs::by_name(connection, owner, name)?.ok_or_else(|| {
        ApiError::field(
            Reason::KeyPairNotFound,
            field,
            format!("there is no key pair {:?}", shortened(name)),
        )
    })
}

fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<KeyPair> {
    Kind::KeyPair.check(id, field)?;
    db::key_pairs::get(connection, id)?.ok_or_else(|| Kind::KeyPair.missing(id, field))
}

/// Names are shown in lists of the metadata service, one a line.
fn check_name(name: &str) -> ApiResult<()> {
    let problem = if name.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "key_name",
            "the key pair needs a name",
        ));
    } else if name.len() > MAX_NAME {
        "at most 255 characters"
    } else if !name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        "a name is printable ASCII"
    } else if name.trim() != name {
        "no spaces at the beginning and the end"
    } else {
        return Ok(());
    };
    Err(ApiError::invalid("key_name", problem))
}

impl KeyPair {
    fn new(
        owner: String,
        name: String,
        public: public::PublicKey,
        tags: Vec<Tag>,
    ) -> ApiResult<Self> {
        Ok(Self {
            seq: 0,
            id: Kind::KeyPair.new_id()?,
            owner,
            name,
            key_type: public.key_type,
            fingerprint: public.fingerprint,
            public_key: public.line,
            create_time: Millis::now(),
            tags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_line_without_spaces_around_it() {
        for bad in ["", " a", "a ", "a\nb", "schlüssel", &"x".repeat(256)] {
            let error = check_name(bad).expect_err(bad);
            assert_eq!(error.fields(), ["key_name"]);
        }
        check_name("my key (laptop)").expect("fine");
        check_name(&"x".repeat(255)).expect("fine");
    }
}
