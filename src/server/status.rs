//! The one place where a kind of problem becomes a gRPC code.
//!
//! Never CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED or UNAVAILABLE: the kubelet takes
//! them for "perhaps still running", and the pod can start on an empty volume (driver.md 8.3,
//! cluster.md 7).

use tonic::{Code, Status};

use crate::error::{self, Kind, Problems};

/// Longest text that is sent; the kubelet cuts events at 1 KiB, logs and conditions take more.
const MOST_TEXT: usize = 8 << 10;

/// Code of a kind.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Config => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Refused | Kind::Denied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::Shape | Kind::Throttled | Kind::Unavailable | Kind::Deadline => Code::FailedPrecondition,
        Kind::Bug => Code::Internal,
    }
}

/// The answer to a call that failed.
pub fn of(problems: &Problems) -> Status {
    Status::new(code(problems.kind()), error::cut(problems.to_string(), MOST_TEXT))
}

/// Last resort before the wire: a code that is not final becomes INTERNAL, whoever made it.
pub fn final_only(status: Status) -> Status {
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unavailable => Status::internal(status.message()),
        _ => status,
    }
}

/// The code as gRPC spells it.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t32_every_kind_has_a_final_code() {
        for kind in Kind::ALL {
            let made = Status::new(code(kind), "x");
            assert_eq!(final_only(made).code(), code(kind), "{kind:?}");
        }
    }

    #[test]
    fn t32_codes_that_are_not_final_become_internal() {
        for code in [1, 4, 8, 10, 14] {
            assert_eq!(final_only(Status::new(Code::from(code), "x")).code(), Code::Internal);
        }
    }
}
