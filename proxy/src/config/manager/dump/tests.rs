use super::*;

fn name(n: usize) -> Arc<str> {
    format!("n{n:04}").into()
}

fn put(dump: &Dump, kind: Kind, resources: Vec<(Arc<str>, Vec<u8>)>) {
    let mut together = Together::default();
    resources.iter().for_each(|(_, bytes)| together.add(bytes));
    for ((name, _), stored) in resources.into_iter().zip(together.stored()) {
        dump.put(kind, name, Dumped { stored, version: None });
    }
}

/// A kilobyte that is the resource's own.
fn cluster(n: usize, version: usize) -> (Arc<str>, Vec<u8>) {
    (name(n), format!("{n} {version} ").repeat(128).into_bytes())
}

/// Bytes of the resources that are packed, of all, and of the blocks that they are in.
fn bytes(dump: &Dump) -> [usize; 3] {
    let (mut packed, mut bytes, mut blocks) = (0, 0, HashMap::default());
    for Dumped { stored, .. } in dump.lock().values() {
        let block = &stored.block;
        packed += if block.is_packed() { stored.length() } else { 0 };
        bytes += stored.length();
        blocks.insert(Arc::as_ptr(block), block.length());
    }
    [packed, bytes, blocks.into_values().sum()]
}

fn bytes_of(dump: &Dump) -> Vec<Vec<u8>> {
    let mut unpacker = Unpacker::default();
    let all = dump.of(Kind::Cluster);
    all.iter().map(|(_, resource)| resource.any(Kind::Cluster, &mut unpacker).value).collect()
}

#[test]
fn what_is_packed_is_what_came() {
    let dump = Dump::default();
    put(&dump, Kind::Cluster, (0..60).map(|n| cluster(n, 1)).collect());
    put(&dump, Kind::Listener, vec![(name(7), vec![1, 2, 3])]);
    dump.pack();
    assert_eq!(bytes(&dump)[0], 0, "it is too little");
    put(&dump, Kind::Cluster, (40..500).map(|n| cluster(n, 2)).collect());
    let plain = bytes_of(&dump);
    dump.pack();
    let [packed, all, blocks] = bytes(&dump);
    assert!(packed + PACKED > all && blocks < all + PACKED, "{packed} of {all} are packed, in {blocks}");
    assert_eq!(bytes_of(&dump), plain);
    let listener = dump.get(Kind::Listener, &name(7)).unwrap();
    assert_eq!(listener.any(Kind::Listener, &mut Unpacker::default()).value, [1, 2, 3]);
}

#[test]
fn what_comes_while_it_is_packed_stays() {
    let dump = Dump::default();
    put(&dump, Kind::Cluster, (0..200).map(|n| cluster(n, 1)).collect());
    let (before, together) = dump.next_plain(None).unwrap();
    put(&dump, Kind::Cluster, vec![cluster(0, 2)]);
    let wanted = bytes_of(&dump);
    dump.swap(&before, together.packed());
    assert_eq!(bytes_of(&dump), wanted);
    assert!(bytes(&dump)[0] > 0, "others are packed");
}

#[test]
fn what_is_gone_is_not_kept_for_ever() {
    let dump = Dump::default();
    put(&dump, Kind::Cluster, (0..800).map(|n| cluster(n, 0)).collect());
    dump.pack();
    for version in 1..50 {
        // Each time others stay.
        let changed = (0..800).filter(|n| (n * 7919 + version * 104_729) % 5 != 0);
        put(&dump, Kind::Cluster, changed.map(|n| cluster(n, version)).collect());
        let wanted = bytes_of(&dump);
        dump.pack();
        let [_, all, blocks] = bytes(&dump);
        assert!(blocks <= 2 * all + PACKED, "{all} are used of {blocks}");
        assert_eq!(bytes_of(&dump), wanted);
    }
}
