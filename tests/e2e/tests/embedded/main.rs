//! Real kubectl against the hub's own API, with no edge: each verb that people use, and what it must say.

mod bench;
mod nodes;
mod reads;
mod refusals;
mod restart;
mod rights;
mod rollouts;
mod writes;
