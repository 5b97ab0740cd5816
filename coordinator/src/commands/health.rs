//! `coordinator health`: the health of the role on this machine, for
//! container health checks.

use anyhow::Result;
use service::{
    operator::{OperatorArgs, probe},
    settings::Problems,
};

/// Asks the operator's listener.
pub(crate) fn main(args: &OperatorArgs) -> Result<()> {
    let mut problems = Problems::default();
    let settings = args.check(&mut problems);
    Ok(probe::check(problems.finish(settings)?.socket_address())?)
}
