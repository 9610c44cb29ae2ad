//! DNS messages: any question has an answer that is one, and an answer that was read holds no longer, and is read again, after it was given on.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use remora_proxy::dns::reply::{Asked, Fit, Left, Reply};
use remora_proxy::dns::wire::{HEADER, NotAQuery, Query, code};

/// `www.example.com`, A, with EDNS.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0";

fuzz_target!(|bytes: &[u8]| {
    match Query::read(bytes) {
        Ok(query) => assert_answer(bytes, &query.answer(code::SERV_FAIL)),
        Err(NotAQuery::Answer(answer)) => assert_answer(bytes, &answer),
        Err(NotAQuery::Silence) => {}
    }
    let Ok(query) = Query::read(QUESTION) else { panic!("the question") };
    let asked = Asked::new(&query.key, 0x4711, &[0x55; 32], true);
    // Mostly an answer to that, whose counts and records are anybody's.
    let Some((counts, records)) = bytes.split_at_checked(6) else { return };
    let mut message = asked.message[..HEADER + query.question.len()].to_vec();
    (message[2], message[3]) = (0x81, 0x80);
    message[6..HEADER].copy_from_slice(counts);
    message.extend_from_slice(records);
    assert_eq!(asked.fits(&message), Fit::Yes);
    let Some(reply) = Reply::read(&query.key, &message) else { return };
    let given = reply.answer(&query, Left::After(Duration::from_secs(10)), false);
    let Some(again) = Reply::read(&query.key, &given) else { panic!("{given:?} is not read again") };
    assert!(again.ttl <= reply.ttl && again.negative == reply.negative, "{reply:?} {again:?}");
});

fn assert_answer(question: &[u8], answer: &[u8]) {
    assert_eq!(question[..2], answer[..2]);
    assert!(answer[2] & 0x80 != 0 && answer.len() >= HEADER);
}
