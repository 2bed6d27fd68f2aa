//! To be written.

use crate::kinds::Row;

pub(super) const ROWS: &[Row] = &[];
