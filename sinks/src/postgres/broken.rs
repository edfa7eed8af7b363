//! Guards that a build for tests can do without (feature `breakable`): so it is seen that fault
//! runs fail where one of them is missing. In every other build all guards stand.

/// A guard against rows that are written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// A commit looks at who has the progress, and how far it is: an older generation, or another
    /// holder of the same, finds it changed.
    Fence,
    /// After a lost reply the progress is read, and a commit looks at how far it is.
    Progress,
}

/// Whether `WEIR_BREAK` switches a guard off.
pub(crate) fn is_off(guard: Guard) -> bool {
    let name = match guard {
        Guard::Fence => "fence",
        Guard::Progress => "progress",
    };
    cfg!(feature = "breakable") && std::env::var("WEIR_BREAK").is_ok_and(|off| off == name)
}
