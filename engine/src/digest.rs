//! Digests of outputs: Σ hash(row) · diff mod 2¹²⁸.
//!
//! The hash is XXH3-128 of the row's key encoding, so it does not depend on how rows are chunked,
//! ordered or dictionary-encoded. Equal digests are how equal outputs are shown.

use xxhash_rust::xxh3::xxh3_128;

use crate::keys::encode_value;
use crate::rows::Delta;

/// The digest of a chunk; digests add up.
pub fn digest(delta: &Delta) -> u128 {
    let mut sum = 0u128;
    let mut key = Vec::new();
    for row in 0..delta.len() {
        key.clear();
        delta.rows.columns().iter().for_each(|c| encode_value(c.as_ref(), row, &mut key));
        let diff = delta.diffs.as_ref().map_or(1, |d| d[row]);
        sum = sum.wrapping_add(xxh3_128(&key).wrapping_mul(i128::from(diff) as u128));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, RecordBatch};
    use std::sync::Arc;

    fn rows(values: Vec<i64>) -> Delta {
        let column = Arc::new(Int64Array::from(values)) as _;
        Delta::fired(RecordBatch::try_from_iter([("a", column)]).expect("rows"))
    }

    #[test]
    fn order_does_not_matter_but_rows_do() {
        assert_eq!(digest(&rows(vec![1, 2, 3])), digest(&rows(vec![3, 1, 2])));
        assert_ne!(digest(&rows(vec![1, 2, 3])), digest(&rows(vec![1, 2, 2])));
        assert_ne!(digest(&rows(vec![1])), digest(&rows(vec![1, 1])));
        let mut taken_back = rows(vec![7, 7]);
        taken_back.diffs = Some(vec![1, -1].into());
        assert_eq!(digest(&taken_back), 0);
    }
}
