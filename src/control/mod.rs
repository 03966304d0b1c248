//! The control plane: management, signals, drain, and the kicker. Never touches a message.
//!
//! It meets the data cores only in the mesh. The management listener runs on an executor of its own thread, so it answers while
//! every data core is saturated.

mod certificates;
pub mod doctor;
pub mod files;
pub mod host;
pub mod kicker;
pub mod log;
pub mod run;
pub mod takeover;
pub mod zookeeper;
