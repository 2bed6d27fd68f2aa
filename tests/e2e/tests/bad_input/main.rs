//! Suite `bad_input`: what comes to a listener that no client of ours sends, and pods that cannot run.

mod crowd;
mod identity;
mod listeners;
mod pods;
mod tunnel;
