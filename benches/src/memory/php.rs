//! The blocks that PHP's engine makes: strings of 24 bytes and their text, hash tables of 56 with
//! buckets of 32 that double from eight, objects of 40 with 16 a property, references of 32, all
//! counted.

use super::{mark, settled};
use crate::Context;
use crate::rng::Rng;
use std::hint::black_box;
use std::rc::Rc;

#[derive(Clone)]
enum Value {
    Null,
    Long(i64),
    Text(Rc<Text>),
    Table(Rc<Table>),
    Object(Rc<Object>),
}

/// In PHP the text follows in the same block; here `Rc<[u8]>` does that: 16 bytes and the text.
struct Text(Rc<[u8]>);

impl Text {
    fn new(text: &str) -> Rc<Self> {
        Rc::new(Self(text.as_bytes().into()))
    }
}

/// 32 bytes, as PHP's bucket.
#[derive(Clone)]
struct Bucket {
    value: Value,
    hash: u64,
    key: Option<Rc<Text>>,
}

const _: () = assert!(size_of::<Value>() == 16 && size_of::<Bucket>() == 32);

/// Buckets in order of insertion, and a table of their places.
#[derive(Clone, Default)]
struct Table {
    buckets: Vec<Bucket>,
    places: Vec<u32>,
}

impl Table {
    const FREE: u32 = u32::MAX;

    fn hash(key: &[u8]) -> u64 {
        key.iter()
            .fold(5381, |hash: u64, &byte| hash.wrapping_mul(33).wrapping_add(u64::from(byte)))
    }

    fn place(&self, hash: u64, key: &[u8]) -> Result<usize, usize> {
        let mask = self.places.len() - 1;
        let mut place = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 32 & mask;
        loop {
            let index = self.places[place];
            if index == Self::FREE {
                return Err(place);
            }
            let bucket = &self.buckets[index as usize];
            if bucket.hash == hash && bucket.key.as_ref().is_some_and(|text| *text.0 == *key) {
                return Ok(index as usize);
            }
            place = (place + 1) & mask;
        }
    }

    fn set(&mut self, key: &Rc<Text>, value: Value) {
        if self.buckets.len() == self.buckets.capacity() {
            let capacity = (self.buckets.capacity() * 2).max(8);
            self.buckets.reserve_exact(capacity - self.buckets.len());
            self.places = vec![Self::FREE; capacity * 2];
            for index in 0..self.buckets.len() {
                let bucket = &self.buckets[index];
                let text = bucket.key.as_ref().expect("every bucket has a key").clone();
                let place = self.place(bucket.hash, &text.0).expect_err("keys differ");
                self.places[place] = index as u32;
            }
        }
        let hash = Self::hash(&key.0);
        match self.place(hash, &key.0) {
            Ok(index) => self.buckets[index].value = value,
            Err(place) => {
                self.places[place] = self.buckets.len() as u32;
                self.buckets.push(Bucket { value, hash, key: Some(key.clone()) });
            }
        }
    }

    fn get(&self, key: &Text) -> Option<&Value> {
        if self.places.is_empty() {
            return None;
        }
        self.place(Self::hash(&key.0), &key.0).ok().map(|index| &self.buckets[index].value)
    }
}

struct Object {
    class: u64,
    properties: Box<[Value]>,
    dynamic: Option<Box<Table>>,
}

struct Names {
    columns: Vec<Rc<Text>>,
}

/// A row as a database's driver makes it: a table of texts by column.
fn row(rng: &mut Rng, names: &Names, id: usize) -> Table {
    let mut table = Table::default();
    for (index, column) in names.columns.iter().enumerate() {
        let value = match index % 4 {
            0 => Value::Long(id as i64),
            1 => Value::Text(Text::new(&format!("{} of {id}", rng.below(1000)))),
            2 => Value::Null,
            _ => Value::Text(Text::new(&"abcdefghijklmnopqrstuvwxyz"[..rng.between(1, 26)])),
        };
        table.set(column, value);
    }
    table
}

fn entity(rng: &mut Rng, names: &Names, row: Table) -> Value {
    let mut properties: Vec<Value> =
        row.buckets.iter().take(4).map(|bucket| bucket.value.clone()).collect();
    properties.push(Value::Table(Rc::new(row)));
    let dynamic = (rng.below(4) == 0).then(|| {
        let mut table = Table::default();
        table.set(&names.columns[0], Value::Text(Text::new("lazy")));
        Box::new(table)
    });
    Value::Object(Rc::new(Object { class: 7, properties: properties.into(), dynamic }))
}

fn sum(value: &Value) -> i64 {
    match value {
        Value::Null => 1,
        Value::Long(number) => *number,
        Value::Text(text) => text.0.len() as i64,
        Value::Table(table) => table.buckets.iter().map(|bucket| sum(&bucket.value)).sum(),
        Value::Object(object) => {
            object.class as i64
                + object.properties.iter().map(sum).sum::<i64>()
                + object.dynamic.as_ref().map_or(0, |table| table.buckets.len() as i64)
        }
    }
}

/// Pages are made one after the other, each of entities that were loaded; one list of them stays
/// longer, as a cache.
pub fn php(context: Context) {
    const ROWS: usize = 60_000;
    let rows = if context.quick { ROWS / 10 } else { ROWS };
    let names = Names {
        columns: ["id", "title", "parent", "slug", "author", "body"].map(Text::new).into(),
    };
    let mut rng = Rng::new(8);
    let mut total = 0;
    let mut cache = Table::default();
    for page in 0..8 {
        let mut list = Table::default();
        for id in 0..rows {
            let row = row(&mut rng, &names, id);
            total += row.get(&names.columns[3]).map_or(0, sum);
            let value = entity(&mut rng, &names, row);
            list.set(&Text::new(&format!("entity:{id}")), value);
        }
        // Copy on write: a part of the tables is separated.
        for bucket in list.buckets.iter_mut().step_by(5) {
            if let Value::Object(object) = &bucket.value
                && let Some(Value::Table(table)) = object.properties.last()
            {
                let mut copy = Table::clone(table);
                copy.set(&names.columns[1], Value::Long(page));
                bucket.value = Value::Table(Rc::new(copy));
            }
        }
        total += sum(&Value::Table(Rc::new(list.clone())));
        cache.set(&Text::new(&format!("page {}", page % 2)), Value::Table(Rc::new(list)));
    }
    mark("peak");
    cache = Table::default();
    for id in 0..rows / 10 {
        let row = row(&mut rng, &names, id);
        let value = entity(&mut rng, &names, row);
        cache.set(&Text::new(&format!("entity:{id}")), value);
    }
    settled(context);
    black_box((total, cache.buckets.len()));
}
