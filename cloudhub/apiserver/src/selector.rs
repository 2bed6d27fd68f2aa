//! Selectors of labels and of fields, from query strings and from `metav1.LabelSelector`. No state.

mod fields;
mod labels;

pub(crate) use fields::Fields;
pub(crate) use labels::Labels;
