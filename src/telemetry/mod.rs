//! Logs and metrics. Labels come from closed lists, never from text or names (tracker T49).

pub mod logs;
pub mod metrics;
