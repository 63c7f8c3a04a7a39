//! Removes ids from the disk that are forgotten before their time.

use crate::engine::embedded::disk::CommitGroup;
use crate::engine::embedded::writer::Writer;

impl Writer {
    /// Adds to a commit what it removes of the ids on the disk, if many of those are forgotten.
    pub(super) fn clean_ids(&self, group: &mut CommitGroup) {
        let Some(disk) = &self.disk else { return };
        let mut rows = match disk.rows_to_clean(group) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::debug!(%error, "ids that are forgotten cannot be removed now");
                return;
            }
        };
        if rows.is_empty() {
            return;
        }
        self.shared.index.remembers(|remembers| {
            rows.iter_mut().for_each(|row| row.retain(remembers));
        });
        group.cleaned = rows;
    }
}
