//! Logs and metrics. Labels come from closed lists, never from text (tracker T49); the one exception are
//! classes, which are bounded.

pub mod logs;
pub mod metrics;
