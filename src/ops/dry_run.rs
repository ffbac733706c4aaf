//! What a push, a pull or a copy would do. Nothing is written, neither here nor in a registry.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::transfer::{Access, homes, known};
use crate::copy::{CopyPlan, plan};
use crate::error::{Error, Result};
use crate::oci::Reference;
use crate::registry::{Known, Remote};
use crate::storage::{Memory, Pushed};
use crate::store::Store;

/// What [`super::transfer::push`] would do. The store's layers are not read.
///
/// # Errors
/// As [`super::transfer::push`], but for what reading the layers would show.
pub async fn push(store: &Store, name: &Reference, to: &Reference, access: &Access) -> Result<CopyPlan> {
    let (_, manifest) = super::inspect::find(store, name)?;
    let known = Known { unfinished: None, ..known(store, to.require_host()?, &manifest) };
    let remote = Remote::knowing(known, to, access.keychain.clone(), &access.options)?;
    let planned = plan(store, name, &remote, to, access.options.concurrency).await?;
    mounted(planned, &remote, access.options.concurrency).await
}

/// What [`super::transfer::pull`] would do. Where there is no store yet, all would be fetched.
///
/// # Errors
/// As [`super::transfer::pull`], but for what reading the layers would show.
pub async fn pull(store: Option<&Store>, from: &Reference, name: &Reference, access: &Access) -> Result<CopyPlan> {
    let remote = Remote::new(from, access.keychain.clone(), &access.options)?;
    match store {
        Some(store) => plan(&remote, from, store, name, access.options.concurrency).await,
        None => plan(&remote, from, &Memory::default(), name, access.options.concurrency).await,
    }
}

/// What [`super::transfer::mirror`] would do.
///
/// # Errors
/// As [`super::transfer::mirror`], but for what reading the layers would show.
pub async fn mirror(from: &Reference, to: &Reference, access: &Access) -> Result<CopyPlan> {
    let remote = |reference, known| Remote::knowing(known, reference, access.keychain.clone(), &access.options);
    let known = Known { homes: homes(from, to), ..Known::default() };
    let (source, destination) = (remote(from, Known::default())?, remote(to, known)?);
    let planned = plan(&source, from, &destination, to, access.options.concurrency).await?;
    mounted(planned, &destination, access.options.concurrency).await
}

/// The same plan with the blobs that another repository of the registry has.
async fn mounted(planned: CopyPlan, remote: &Remote, concurrency: usize) -> Result<CopyPlan> {
    let CopyPlan { digest, replaces, blobs } = planned;
    let looks: Vec<_> = blobs
        .into_iter()
        .map(|mut blob| async move {
            if blob.pushed == Pushed::Stored && remote.is_mountable(&blob.descriptor).await? {
                blob.pushed = Pushed::Mounted;
            }
            Ok::<_, Error>(blob)
        })
        .collect();
    let blobs = stream::iter(looks).buffered(concurrency.max(1)).try_collect().await?;
    Ok(CopyPlan { digest, replaces, blobs })
}
