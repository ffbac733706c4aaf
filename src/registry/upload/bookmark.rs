//! How far one upload got, for the attempts of this run, and where it can be kept for those of the next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::{Claim, Upload};

/// The place where an upload goes on.
pub(super) struct Bookmark(Mutex<Page>);

struct Page {
    upload: Option<Upload>,
    claim: Option<Box<dyn Claim>>,
}

impl Bookmark {
    /// What `claim` knows from an earlier run, and where it is to be kept.
    pub(super) fn new(mut claim: Option<Box<dyn Claim>>) -> Self {
        let upload = claim.as_mut().and_then(|claim| claim.read());
        Self(Mutex::new(Page { upload, claim }))
    }

    pub(super) fn read(&self) -> Option<Upload> {
        self.page().upload.clone()
    }

    pub(super) fn keep(&self, upload: Upload) {
        let mut page = self.page();
        if let Some(claim) = &mut page.claim {
            claim.keep(&upload);
        }
        page.upload = Some(upload);
    }

    pub(super) fn forget(&self) {
        let mut page = self.page();
        if let Some(claim) = &mut page.claim {
            claim.forget();
        }
        page.upload = None;
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
