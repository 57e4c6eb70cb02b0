//! Segments of the proxy's own serve once the daemon has sealed them: before that no member can map them.

use super::*;

#[test]
fn no_descriptor_leads_into_a_segment_that_is_not_sealed() {
    for mode in MODES {
        let mut rig = Rig::with_pools(mode, 4 * POOL_BYTES);
        rig.ends[0].attach(0);
        rig.ends[1].seals = false;
        rig.settle();
        rig.ends[0].publish(0, Kind::Post, 0, Some(claim_at(0, 2 * POOL_BYTES as u64)), b"long");
        rig.settle();
        let end = &mut rig.ends[1];
        assert!(end.outputs.iter().any(|o| matches!(o, Output::NewPoolSegment { .. })), "{mode:?}");
        assert!(end.take(1).is_none(), "{mode:?}: it is mapped here, and by nobody else");
        let (memory, index) = (end.memory, end.proxy_pool.len() as u32);
        end.courier.segment_sealed(memory, index, &mut end.fabric);
        rig.settle();
        let claim = rig.ends[1].take(1).expect("the seal let it in").claim().unwrap();
        assert_eq!((claim.segment, claim.len_bytes), (index, 2 * POOL_BYTES as u64));
    }
}
