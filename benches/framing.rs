//! What a WebSocket frame costs by size, beside a copy of the same bytes: nothing on this way may cost much more than that.
//!
//!     cargo bench --bench framing
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use signalring::proto::ws::{Decoder, Event, Opcode, Role, apply_mask, header};

const SIZES: [usize; 3] = [64, 1024, 16 * 1024];
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn framing(c: &mut Criterion) {
    for size in SIZES {
        let payload: Vec<u8> = br#"{"type":1,"target":"Update_VM"}"#.iter().copied().cycle().take(size).collect();
        let mut masked = payload.clone();
        apply_mask(&mut masked, KEY, 0);
        let text = [header(Opcode::Text, true, size as u64, Some(KEY)).as_ref(), &masked].concat();
        let binary = [header(Opcode::Binary, true, size as u64, Some(KEY)).as_ref(), &masked].concat();

        let mut group = c.benchmark_group("framing");
        // A header writes only itself, whatever it announces.
        group.throughput(Throughput::Bytes(header(Opcode::Text, true, size as u64, None).as_ref().len() as u64));
        group.bench_function(BenchmarkId::new("header", size), |b| {
            b.iter(|| black_box(header(black_box(Opcode::Text), true, black_box(size as u64), None)));
        });
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            let mut copy = vec![0; size];
            b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&payload)));
        });
        group.bench_function(BenchmarkId::new("mask", size), |b| {
            let mut data = payload.clone();
            b.iter(|| apply_mask(black_box(&mut data), black_box(KEY), black_box(1)));
        });
        for (name, frame) in [("decode_text", &text), ("decode_binary", &binary)] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                let mut decoder = Decoder::new(Role::Server);
                // Decoding unmasks in place, so each turn needs a fresh frame, made outside of the time measured.
                let turn = |mut input: Vec<u8>| {
                    let found = decoder.next(black_box(&mut input));
                    assert!(matches!(found, Ok((_, Some(Event::Data { start: true, end: true, .. })))));
                    input
                };
                b.iter_batched(|| frame.clone(), turn, BatchSize::SmallInput);
            });
        }
        group.finish();
    }
}

criterion_group!(benches, framing);
criterion_main!(benches);
