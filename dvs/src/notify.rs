//! `dvs notify`: raises bits at an endpoint, and stays bound a little, since the bits of one that has ended are
//! cleared.

use anyhow::Result;
use dvk::NotifyError;
use serde_json::json;

use crate::cli::NotifyArgs;
use crate::cluster::Place;
use crate::failure::{Exit, failure};
use crate::interrupt;
use crate::output::Output;
use crate::seat::Seat;
use crate::talk::{Deadline, daemon_lost, find};

pub fn notify(place: &Place, args: NotifyArgs, output: &Output) -> Result<()> {
    interrupt::note_signals()?;
    let seat = Seat::choose(place, &args.seat)?;
    let bits = args.bits;
    let (from, to) = interrupt::unless(move || {
        let mut me = seat.bind()?;
        let to = find(&mut me, &args.to, &args.seat.dc, Deadline::after(Some(args.timeout)))?;
        me.notify(to, args.bits).map_err(|why| match why {
            NotifyError::DeadDestination => {
                let what = format!("the bits for {} were not raised: {why}", args.to);
                failure(Exit::Failed, what, "`dvs ps` shows who is bound")
            }
            NotifyError::NotPermitted => {
                failure(Exit::Refused, why.to_string(), "`docs/privileges.md` says what a rule may allow")
            }
            NotifyError::Unavailable(why) => daemon_lost(&why),
        })?;
        interrupt::sleep(args.linger)?;
        let from = me.whoami();
        me.unbind().map_err(|why| daemon_lost(&why))?;
        Ok((from, to))
    })?;
    let answer = json!({ "ok": true, "from": from.to_string(), "to": to.to_string(), "bits": bits });
    output.answer(&answer, |_| format!("raised {bits:#x} at {to}"))
}
