use proptest::prelude::*;

use super::*;
use crate::dns::reply::{Asked, Fit, Left, Reply, code_of, is_truncated};

/// A question with ID 0x1234 and RD.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, RD, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let plain = labels(name).unwrap();
    // As the test spells it.
    let mut at = 1;
    let mut spelled = plain.to_vec();
    for label in name.trim_end_matches('.').split('.') {
        spelled[at..at + label.len()].copy_from_slice(label.as_bytes());
        at += label.len() + 1;
    }
    message.extend(spelled);
    message.extend(kind.to_be_bytes());
    message.extend(IN.to_be_bytes());
    message
}

fn with_opt(mut message: Vec<u8>, size: u16, flags: [u8; 4]) -> Vec<u8> {
    message[11] += 1;
    message.push(0);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(size.to_be_bytes());
    message.extend(flags);
    message.extend([0, 0]);
    message
}

fn read(message: &[u8]) -> Query {
    Query::read(message).unwrap()
}

/// A record of the question's name.
fn record_of(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0xc0, 12];
    out.extend(kind.to_be_bytes());
    out.extend(IN.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out
}

/// `ns.`, `mail.`, and five numbers of which the last one is how long a name may be missing.
fn soa(minimum: u32) -> Vec<u8> {
    let mut data = b"\x02ns\x00\x04mail\x00".to_vec();
    data.extend([0; 16]);
    data.extend(minimum.to_be_bytes());
    data
}

/// What a server answers to `asked`: code and the records of each section.
fn reply(asked: &Asked, code: u8, sections: [Vec<Vec<u8>>; 3]) -> Vec<u8> {
    let mut out = asked.message[..asked.question].to_vec();
    out[2] |= QR;
    out[3] |= RA | code;
    out[10..12].fill(0);
    for (i, section) in sections.iter().enumerate() {
        out[7 + 2 * i] = u8::try_from(section.len()).unwrap();
        out.extend(section.concat());
    }
    out
}

fn asked(query: &Query) -> Asked {
    Asked::new(&query.key, 0xbeef, &[0b1010_1010; 32], true)
}

fn count(message: &[u8], at: usize) -> u16 {
    u16_at(message, at).unwrap()
}

#[test]
fn a_question_is_read_whatever_its_letters() {
    let query = read(&question("WWW.Example.com", kind::A));
    assert_eq!((query.id, query.name().as_str()), (0x1234, "www.example.com"));
    assert_eq!((query.key.kind, query.key.class), (kind::A, IN));
    assert_eq!(query.key, read(&question("www.eXample.com", kind::A)).key);
    assert_eq!(query.udp_size(), PLAIN_UDP);
    let edns = read(&with_opt(question("a.b", kind::A), 1400, [0, 0, 0x80, 0]));
    assert!(edns.key.signatures && edns.udp_size() == 1400);
    assert_eq!(read(&with_opt(question("a.b", kind::A), 100, [0; 4])).udp_size(), PLAIN_UDP);
    assert_eq!(read(&with_opt(question("a.b", kind::A), 65_535, [0; 4])).udp_size(), MOST_UDP);
}

#[test]
fn what_is_no_question_is_dropped_or_answered_with_its_code() {
    let good = question("a.b", kind::A);
    let refused = |message: &[u8]| match Query::read(message) {
        Ok(query) => panic!("{query:?}"),
        Err(NotAQuery::Silence) => None,
        Err(NotAQuery::Answer(answer)) => {
            assert_eq!(&answer[..2], &message[..2], "the ID comes back");
            assert!(answer[2] & QR != 0);
            Some(code_of(&answer))
        }
    };
    let edit = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    assert_eq!(refused(&good[..11]), None, "half a header");
    assert_eq!(refused(&[]), None);
    assert_eq!(refused(&edit(2, QR)), None, "an answer");
    assert_eq!(refused(&edit(2, 2 << 3)), Some(code::NOT_IMP), "STATUS");
    assert_eq!(refused(&edit(5, 0)), Some(code::FORM_ERR), "no question");
    assert_eq!(refused(&edit(5, 2)), Some(code::FORM_ERR), "two");
    assert_eq!(refused(&edit(11, 1)), Some(code::FORM_ERR), "a record is missing");
    assert_eq!(refused(&edit(12, 0xc0)), Some(code::FORM_ERR), "a compressed name");
    assert_eq!(refused(&edit(12, 64)), Some(code::FORM_ERR), "a label that is too long");
    assert_eq!(refused(&good[..good.len() - 1]), Some(code::FORM_ERR), "half a class");
    let twice = with_opt(with_opt(good.clone(), 512, [0; 4]), 512, [0; 4]);
    assert_eq!(refused(&twice), Some(code::FORM_ERR), "OPT twice");
    assert_eq!(refused(&question("a.b", kind::AXFR)), Some(code::REFUSED), "a zone");
    let Err(NotAQuery::Answer(version)) = Query::read(&with_opt(good, 512, [0, 1, 0, 0])) else { panic!() };
    let opt = &version[version.len() - OPT..];
    assert_eq!((code_of(&version), opt[5]), (0, 1), "BADVERS is 16");
}

#[test]
fn addresses_have_the_name_of_the_question() {
    let query = read(&with_opt(question("Web.Shop", kind::AAAA), 1232, [0; 4]));
    let answer =
        query.addresses(&["fd00::7".parse().unwrap(), "fd00::8".parse().unwrap()], Duration::from_secs(30));
    let read = Reply::read(&query.key, &answer).unwrap();
    assert_eq!((read.ttl, read.negative), (Some(Duration::from_secs(30)), false));
    assert_eq!((count(&answer, 6), count(&answer, 10)), (2, 1));
    assert!(answer.windows(8).any(|w| w == b"Web\x04Shop"), "spelled as it was asked");
    let none = query.addresses(&[], Duration::from_secs(30));
    assert_eq!((code_of(&none), count(&none, 6)), (code::NO_ERROR, 0));
    let cut = query.truncated();
    assert!(is_truncated(&cut) && !is_truncated(&answer) && count(&cut, 6) == 0);
}

#[test]
fn only_the_answer_to_what_was_asked_fits() {
    let query = read(&question("www.example.com", kind::A));
    let asked = asked(&query);
    assert!(asked.message.windows(11).any(|w| w.eq_ignore_ascii_case(b"example\x03com")));
    assert_ne!(&asked.message[HEADER..HEADER + query.key.name.len()], &*query.key.name, "letters are mixed");
    let good = reply(&asked, code::NO_ERROR, [vec![record_of(kind::A, 60, &[10, 0, 0, 1])], vec![], vec![]]);
    assert_eq!(asked.fits(&good), Fit::Yes);
    let edit = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    assert_eq!(asked.fits(&edit(1, 0)), Fit::No, "another ID");
    assert_eq!(asked.fits(&edit(2, RD)), Fit::No, "a question");
    assert_eq!(asked.fits(&edit(5, 0)), Fit::No, "without the question");
    assert_eq!(asked.fits(&edit(HEADER + 1, b'x')), Fit::No, "another name");
    let flipped = good[HEADER + 1] ^ 0x20;
    assert_eq!(asked.fits(&edit(HEADER + 1, flipped)), Fit::OtherCase);
    assert_eq!(asked.fits(&good[..20]), Fit::No);
    let mut old = good[..HEADER].to_vec();
    (old[3], old[5], old[7]) = (code::FORM_ERR, 0, 0);
    assert_eq!(asked.fits(&old), Fit::Yes, "a server that does not know EDNS");
}

#[test]
fn an_answer_holds_for_its_shortest_ttl_and_ages() {
    let query = read(&with_opt(question("WWW.example.com", kind::A), 1232, [0; 4]));
    let asked = asked(&query);
    let records = vec![record_of(5, 300, b"\x01x\xc0\x0c"), record_of(kind::A, 60, &[10, 0, 0, 1])];
    let message = with_opt(reply(&asked, code::NO_ERROR, [records, vec![], vec![]]), 4096, [0; 4]);
    let read = Reply::read(&query.key, &message).unwrap();
    assert_eq!((read.ttl, read.negative), (Some(Duration::from_secs(60)), false));
    let ttls = |answer: &[u8]| {
        let again = Reply::read(&query.key, answer).unwrap();
        again.ttls.iter().map(|at| u32_at(answer, *at).unwrap()).collect::<Vec<_>>()
    };
    let aged = read.answer(&query, Left::After(Duration::from_secs(50)), false);
    assert_eq!(ttls(&aged), [250, 10]);
    assert_eq!(ttls(&read.answer(&query, Left::Fixed(Duration::from_secs(30)), false)), [30, 30]);
    assert_eq!(&aged[..2], &[0x12, 0x34]);
    assert_eq!(&aged[HEADER..HEADER + query.question.len()], &*query.question, "spelled as it was asked");
    assert_eq!(count(&aged, 10), 1, "our OPT, not the server's");
    let plain = self::read(&question("www.example.com", kind::A));
    let without = read.answer(&plain, Left::After(Duration::ZERO), false);
    assert_eq!(count(&without, 10), 0, "none for a client without EDNS");
}

/// Some servers write the name of the question into each record, with the letters that were there against forgery.
#[test]
fn names_that_are_not_compressed_are_spelled_as_they_were_asked() {
    let query = read(&question("WWW.example.com", kind::A));
    let asked = asked(&query);
    let length = query.key.name.len();
    let ours = asked.message[HEADER..HEADER + length].to_vec();
    let whole = |record: &[u8]| [&ours[..], &record[2..]].concat();
    let [one, two] = [1, 2].map(|last| record_of(kind::A, 60, &[10, 0, 0, last]));
    let records = vec![whole(&one), two.clone(), whole(&two)];
    let other = [&b"\x04mail\x00"[..], &one[2..]].concat();
    let message = reply(&asked, code::NO_ERROR, [records, vec![], vec![other.clone(), whole(&one)]]);
    let given = Reply::read(&query.key, &message).unwrap().answer(&query, Left::After(Duration::ZERO), false);
    assert_eq!(given.len(), message.len());
    let count = |name: &[u8]| given.windows(length).filter(|part| *part == name).count();
    assert_eq!((count(&ours), count(&query.question[..length])), (0, 4), "the question and three records");
    assert!(given.windows(other.len()).any(|part| part == other), "another name stays");
}

#[test]
fn negative_answers_hold_for_what_their_soa_says() {
    let query = read(&question("no.example.com", kind::A));
    let asked = asked(&query);
    let ttl = |code, sections| Reply::read(&query.key, &reply(&asked, code, sections)).unwrap();
    let one = |ttl, minimum| [vec![], vec![record_of(kind::SOA, ttl, &soa(minimum))], vec![]];
    let named = ttl(code::NX_DOMAIN, one(3600, 20));
    assert!(named.negative && named.is_no_name());
    assert_eq!(named.ttl, Some(Duration::from_secs(20)));
    let none = ttl(code::NO_ERROR, one(10, 20));
    assert!(none.negative && !none.is_no_name());
    assert_eq!(none.ttl, Some(Duration::from_secs(10)));
    assert_eq!(ttl(code::NX_DOMAIN, one(86_400, 86_400)).ttl, Some(Duration::from_secs(300)), "at most");
    assert_eq!(ttl(code::NX_DOMAIN, [vec![], vec![], vec![]]).ttl, None, "without an SOA not at all");
    let exists = named.answer(&query, Left::After(Duration::ZERO), true);
    assert_eq!((code_of(&exists), count(&exists, 8)), (code::NO_ERROR, 1), "a name of the table exists");
}

#[test]
fn what_says_nothing_for_sure_is_no_reply() {
    let query = read(&question("a.b", kind::A));
    let asked = asked(&query);
    let empty = || [vec![], vec![], vec![]];
    for code in [code::SERV_FAIL, code::REFUSED, code::FORM_ERR, code::NOT_IMP] {
        assert_eq!(Reply::read(&query.key, &reply(&asked, code, empty())), None, "{code}");
    }
    let bad_cookie = with_opt(reply(&asked, code::NO_ERROR, empty()), 512, [1, 0, 0, 0]);
    assert_eq!(Reply::read(&query.key, &bad_cookie), None);
    let short = [vec![], vec![record_of(kind::SOA, 60, &[0; 21])], vec![]];
    assert_eq!(Reply::read(&query.key, &reply(&asked, code::NX_DOMAIN, short)), None, "half an SOA");
    let long = |length| [vec![record_of(16, 60, &vec![0; length])], vec![], vec![]];
    let fits = usize::from(u16::MAX) - OPT - asked.question - 12;
    assert!(Reply::read(&query.key, &reply(&asked, code::NO_ERROR, long(fits))).is_some());
    assert_eq!(
        Reply::read(&query.key, &reply(&asked, code::NO_ERROR, long(fits + 1))),
        None,
        "no room for OPT"
    );
    let whole = reply(&asked, code::NO_ERROR, [vec![record_of(kind::A, 60, &[10, 0, 0, 1])], vec![], vec![]]);
    assert_eq!(Reply::read(&query.key, &whole[..whole.len() - 1]), None, "cut");
    let huge =
        reply(&asked, code::NO_ERROR, [vec![record_of(kind::A, 1 << 31, &[10, 0, 0, 1])], vec![], vec![]]);
    assert_eq!(Reply::read(&query.key, &huge).unwrap().ttl, Some(Duration::ZERO), "RFC 2181 §8");
}

#[test]
fn names_are_shown_and_read() {
    assert_eq!(text(&labels("Web.Shop.svc.").unwrap()), "web.shop.svc");
    assert_eq!(text(&[0]), ".");
    assert_eq!(text(b"\x02a\n\x00"), "a\\n");
    assert_eq!(text(b"\x09short"), ".", "what is cut");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let query = Query::read(&bytes);
        let own = read(&question("a.b", kind::A));
        let asked = asked(&own);
        let _ = asked.fits(&bytes);
        let _ = Reply::read(&own.key, &bytes);
        if let Ok(query) = query {
            let _ = query.answer(code::SERV_FAIL);
        }
    }

    #[test]
    fn damaged_answers_are_refused_or_read(
        at in 0_usize..120, value in any::<u8>(), cut in 0_usize..120, age in 0_u64..400,
    ) {
        let query = read(&with_opt(question("www.example.com", kind::A), 1232, [0; 4]));
        let asked = asked(&query);
        let sections = [
            vec![record_of(5, 300, b"\x01x\xc0\x0c"), record_of(kind::A, 60, &[10, 0, 0, 1])],
            vec![record_of(kind::SOA, 60, &soa(5))],
            vec![record_of(kind::A, 60, &[10, 0, 0, 2])],
        ];
        let mut message = with_opt(reply(&asked, code::NO_ERROR, sections), 1232, [0; 4]);
        let at = at % message.len();
        message[at] = value;
        message.truncate(message.len() - cut % message.len());
        if let Some(read) = Reply::read(&query.key, &message) {
            let answer = read.answer(&query, Left::After(Duration::from_secs(age)), true);
            prop_assert_eq!(&answer[..2], &[0x12, 0x34][..]);
            prop_assert!(read.ttl.is_none_or(|ttl| ttl <= Duration::from_secs(86_400)));
        }
    }
}
