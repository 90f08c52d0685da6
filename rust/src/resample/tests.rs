//! The passes against plain loops over whole volumes, and inputs that must be refused.

use super::arithmetic::product_sum;
use super::picked::Picks;
use super::plan::{First, Grid, Intensity, Lines, Plan, Resize, Sum};
use super::volume::{Element, Source, Storage, Survey, Volume};
use super::{passes, picked, resample, space};

const PLAIN: Storage =
    Storage { element: Element::Int16, is_big_endian: false, slope: None, intercept: None };
const STRAIGHT: [Source; 3] = [
    Source { axis: 0, is_flipped: false },
    Source { axis: 1, is_flipped: false },
    Source { axis: 2, is_flipped: false },
];
const TO_ONE: Intensity =
    Intensity { from: -1000.0, by: 2000.0, times: 2.0, plus: -1.0, low: -1.0, high: 1.0 };

/// Pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn places(inputs: usize, outputs: usize) -> impl Iterator<Item = f64> {
    let last = (inputs - 1) as f64;
    (0..outputs).map(move |j| ((j as f64 + 0.5) * inputs as f64 / outputs as f64 - 0.5).clamp(0.0, last))
}

fn lines(inputs: usize, outputs: usize) -> Lines<f64> {
    let far = places(inputs, outputs).map(|place| place - place.floor()).collect();
    let near = places(inputs, outputs).map(|place| place.floor() + 1.0 - place).collect();
    Lines { length: inputs, index: places(inputs, outputs).map(|place| place as u32).collect(), near, far }
}

fn resize(inputs: usize, outputs: usize, taps: usize, sum: Sum) -> Resize {
    let Lines { length, index, near, far } = lines(inputs, outputs);
    let single = |weights: Vec<f64>| weights.into_iter().map(|weight| weight as f32).collect();
    let kernel = (0..taps).map(|tap| 0.3 / (1.0 + (tap as f32 - (taps / 2) as f32).abs())).collect();
    Resize { lines: Lines { length, index, near: single(near), far: single(far) }, kernel, sum }
}

fn cube(lengths: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [nx, ny, nz] = lengths;
    (0..nx).flat_map(move |x| (0..ny).flat_map(move |y| (0..nz).map(move |z| [x, y, z])))
}

/// A volume in memory, z fastest.
#[derive(Clone)]
struct Dense {
    lengths: [usize; 3],
    voxels: Vec<f32>,
}

impl Dense {
    fn of(lengths: [usize; 3], voxel: impl FnMut([usize; 3]) -> f32) -> Self {
        Self { lengths, voxels: cube(lengths).map(voxel).collect() }
    }

    fn at(&self, [x, y, z]: [usize; 3]) -> f32 {
        self.voxels[(x * self.lengths[1] + y) * self.lengths[2] + z]
    }
}

fn sum_products(sum: Sum, voxels: &[f32], weights: &[f32]) -> f32 {
    let term = |start: f32, tap: usize| voxels[tap].mul_add(weights[tap], start);
    let in_order = |start: f32, taps: std::ops::Range<usize>| taps.fold(start, term);
    match sum {
        Sum::Twice => voxels.iter().zip(weights).fold(0.0, |sum, (voxel, weight)| sum + voxel * weight),
        Sum::Once => in_order(0.0, 0..weights.len()),
        Sum::Blocks => {
            let blocks = weights.len() / 8;
            let sum = (0..blocks).map(|block| block * 8).fold(0.0, |sum, t| {
                let partial = [(sum, 6, 4), (0.0, 7, 5), (0.0, 2, 0), (0.0, 3, 1)]
                    .map(|(start, first, second)| term(term(start, t + first), t + second));
                (partial[0] + partial[1]) + (partial[2] + partial[3])
            });
            in_order(sum, blocks * 8..weights.len())
        }
    }
}

/// The definition of the first step, on the whole volume.
fn define_spaced(volume: &Dense, plan: &Plan) -> Dense {
    let Intensity { from, by, times, plus, low, high } = plan.intensity;
    let First::Straight(tables) = &plan.first else { panic!("a plan without tables") };
    Dense::of(plan.lengths_spaced(), |at| {
        let mut sum = 0.0_f64;
        for (dx, dy, dz) in
            [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
        {
            let side = [dx, dy, dz];
            let corner: [usize; 3] =
                std::array::from_fn(|axis| tables[axis].index[at[axis]] as usize + side[axis]);
            if (0..3).any(|axis| corner[axis] >= volume.lengths[axis]) {
                continue;
            }
            let [x, y, z]: [f64; 3] = std::array::from_fn(|axis| {
                let table = &tables[axis];
                if side[axis] == 0 { table.near[at[axis]] } else { table.far[at[axis]] }
            });
            sum += f64::from(volume.at(corner)) * (z * y * x);
        }
        ((sum as f32 - from) / by * times + plus).clamp(low, high)
    })
}

/// The definition: every step on the whole volume, in the order of roundings of torch.
fn define(volume: &Dense, plan: &Plan) -> Vec<f32> {
    let spaced = plan.lengths_spaced();
    let mut now = define_spaced(volume, plan);
    for axis in 0..3 {
        let Resize { kernel, sum, .. } = &plan.resize[axis];
        if kernel.is_empty() {
            continue;
        }
        let before = now.clone();
        let padded: [usize; 3] = std::array::from_fn(|other| {
            spaced[other] + if other > axis { plan.resize[other].kernel.len() / 2 * 2 } else { 0 }
        });
        let total: usize = padded.iter().product();
        now = Dense::of(spaced, |at| {
            let voxels: Vec<f32> = (0..kernel.len())
                .map(|tap| {
                    let place = (at[axis] + tap).checked_sub(kernel.len() / 2);
                    place.filter(|place| *place < spaced[axis]).map_or(0.0, |place| {
                        let mut there = at;
                        there[axis] = place;
                        before.at(there)
                    })
                })
                .collect();
            let [x, y, z]: [usize; 3] =
                std::array::from_fn(|other| at[other] + (padded[other] - spaced[other]) / 2);
            let is_tail = (x * padded[1] + y) * padded[2] + z >= total - total % 16;
            sum_products(if is_tail && *sum == Sum::Blocks { Sum::Once } else { *sum }, &voxels, kernel)
        });
    }
    for axis in [2, 1, 0] {
        let table = &plan.resize[axis].lines;
        let mut lengths = now.lengths;
        lengths[axis] = table.index.len();
        let before = now.clone();
        now = Dense::of(lengths, |at| {
            let (near, far) = table.pair(at[axis]);
            let of = |place| {
                let mut there = at;
                there[axis] = place;
                before.at(there)
            };
            let (a, b) = (table.near[at[axis]], table.far[at[axis]]);
            if plan.is_fused {
                product_sum::<true>(of(near), a, of(far) * b)
            } else {
                product_sum::<false>(of(near), a, of(far) * b)
            }
        });
    }
    now.voxels
}

fn bits(voxels: &[f32]) -> Vec<u32> {
    voxels.iter().map(|voxel| voxel.to_bits()).collect()
}

#[test]
fn every_way_gives_the_bits_of_plain_loops() {
    let mut random = Random(7);
    let mut length = |most: u64| 1 + random.below(most) as usize;
    for case in 0..16 {
        let shape: [usize; 3] = std::array::from_fn(|_| length(11));
        let spaced: [usize; 3] = std::array::from_fn(|_| length(19));
        let size: [usize; 3] = std::array::from_fn(|_| length(9));
        let taps: [usize; 3] = std::array::from_fn(|_| if case % 5 == 0 { 0 } else { 2 * length(13) - 1 });
        let sums = [Sum::Blocks, Sum::Once, Sum::Twice];
        let axis = |axis: usize| resize(spaced[axis], size[axis], taps[axis], sums[(case + axis) % 3]);
        let plan = Plan::new(
            First::Straight(std::array::from_fn(|axis| lines(shape[axis], spaced[axis]))),
            [axis(0), axis(1), axis(2)],
            TO_ONE,
            case % 3 != 0,
        )
        .unwrap();
        let order = [[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 2, 1]][case % 4];
        let sources: [Source; 3] =
            std::array::from_fn(|axis| Source { axis: order[axis], is_flipped: case >> axis & 1 == 1 });
        let mut in_file = [0; 3];
        (0..3).for_each(|axis| in_file[order[axis]] = shape[axis]);
        let stored: Vec<i16> = (0..shape.iter().product()).map(|_| length(4000) as i16 - 2000).collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|voxel| voxel.to_le_bytes()).collect();
        let volume = Volume::new(&bytes, PLAIN, in_file, sources).unwrap();
        let dense = Dense::of(shape, |at| {
            let mut place = [0; 3];
            for axis in 0..3 {
                let along = if sources[axis].is_flipped { shape[axis] - 1 - at[axis] } else { at[axis] };
                place[order[axis]] = along;
            }
            f32::from(stored[place[0] + in_file[0] * (place[1] + in_file[1] * place[2])])
        });
        let expected = bits(&define(&dense, &plan));
        let mut out = vec![f32::NAN; size.iter().product()];
        resample(&volume, &plan, &mut out).unwrap();
        assert_eq!(bits(&out), expected, "case {case}: {shape:?} to {spaced:?} to {size:?}");
        out.fill(f32::NAN);
        passes::run::<false>(&volume, &plan, &mut out).unwrap();
        assert_eq!(bits(&out), expected, "case {case}, portable");

        let expected = bits(&define_spaced(&dense, &plan).voxels);
        let mut out = vec![f32::NAN; expected.len()];
        space(&volume, &plan, &mut out).unwrap();
        assert_eq!(bits(&out), expected, "case {case}, spaced");
        out.fill(f32::NAN);
        picked::space::<false>(&volume, &plan, &mut out).unwrap();
        assert_eq!(bits(&out), expected, "case {case}, spaced, portable");

        let voxels: [Vec<u32>; 3] = std::array::from_fn(|axis| {
            (0..size[axis]).map(|_| length(shape[axis] as u64) as u32 - 1).collect()
        });
        let expected =
            Dense::of(size, |at| dense.at(std::array::from_fn(|axis| voxels[axis][at[axis]] as usize)));
        let mut out = vec![f32::NAN; expected.voxels.len()];
        Picks::new(shape, voxels).unwrap().copy(&volume, &mut out).unwrap();
        assert_eq!(out, expected.voxels, "case {case}, picked");
    }
}

/// A grid without rotation has the places of tables, whatever the orientation and the type of the voxels.
#[test]
fn a_grid_that_turns_nothing_gives_what_tables_give() {
    let (shape, spaced, size) = ([5, 4, 3], [7, 3, 6], [4, 2, 5]);
    let resize = |axis: usize| resize(spaced[axis], size[axis], 3, Sum::Once);
    let coordinates: [Vec<f64>; 3] = std::array::from_fn(|axis| {
        let count = spaced[axis];
        (0..count).map(|j| (2 * j + 1) as f64 / count as f64 - 1.0).collect()
    });
    for (case, element) in [Element::Int16, Element::Uint8].into_iter().enumerate() {
        let sources: [Source; 3] =
            std::array::from_fn(|axis| Source { axis, is_flipped: axis == case || axis == 2 });
        let bytes: Vec<u8> = (0..60 * element.bytes()).map(|byte| (byte * 37 % 251) as u8).collect();
        let volume = Volume::new(&bytes, Storage { element, ..PLAIN }, shape, sources).unwrap();
        let grid = |is_fused| Grid {
            lengths: shape,
            coordinates: coordinates.clone(),
            matrix: [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
            is_fused,
        };
        let tables = std::array::from_fn(|axis| {
            let last = (shape[axis] - 1) as f64;
            let length = shape[axis] as f64;
            let places =
                coordinates[axis].iter().map(|at| (((at + 1.0) * length - 1.0) / 2.0).clamp(0.0, last));
            let places: Vec<f64> = places.collect();
            Lines {
                length: shape[axis],
                index: places.iter().map(|place| *place as u32).collect(),
                near: places.iter().map(|place| place.floor() + 1.0 - place).collect(),
                far: places.iter().map(|place| place - place.floor()).collect(),
            }
        });
        let made = |first| {
            let plan = Plan::new(first, [resize(0), resize(1), resize(2)], TO_ONE, true).unwrap();
            let mut out = vec![f32::NAN; 40];
            resample(&volume, &plan, &mut out).unwrap();
            bits(&out)
        };
        let expected = made(First::Straight(tables));
        assert_eq!(made(First::Oblique(grid(true))), expected);
        assert_eq!(made(First::Oblique(grid(false))), expected);
    }
    let empty = Grid {
        lengths: [1, 1, 1],
        coordinates: [vec![], vec![0.0], vec![0.0]],
        matrix: [[0.0; 4]; 3],
        is_fused: true,
    };
    let single = || self::resize(1, 1, 0, Sum::Once);
    assert!(Plan::new(First::Oblique(empty), [single(), single(), single()], TO_ONE, true).is_err());
}

#[test]
fn numbers_of_all_types_become_float32_as_numpy_makes_them() {
    let scaled = |element, is_big_endian| Storage {
        element,
        is_big_endian,
        slope: Some(0.1),
        intercept: Some(-1024.0),
    };
    let row = |bytes: &[u8], storage| {
        let mut row = [0.0];
        Volume::new(bytes, storage, [1, 1, 1], STRAIGHT).unwrap().row(0, 0, &mut row);
        row[0]
    };
    assert_eq!(row(&[0xff], Storage { element: Element::Int8, ..PLAIN }), -1.0);
    assert_eq!(row(&[0xff], Storage { element: Element::Uint8, ..PLAIN }), 255.0);
    assert_eq!(row(&[0x80, 0x01], Storage { is_big_endian: true, ..PLAIN }), -32767.0);
    let large = 16_777_217_i32; // no float32: the tie goes to the even one
    assert_eq!(row(&large.to_le_bytes(), Storage { element: Element::Int32, ..PLAIN }), 16_777_216.0);
    assert_eq!(row(&7_u16.to_be_bytes(), scaled(Element::Uint16, true)), (7.0_f64 * 0.1 - 1024.0) as f32);
    assert_eq!(row(&0.1_f64.to_le_bytes(), Storage { element: Element::Float64, ..PLAIN }), 0.1_f32);
}

#[test]
fn a_survey_finds_equal_voxels_and_those_that_are_not_finite() {
    let of = |voxels: &[f32]| {
        let bytes: Vec<u8> = voxels.iter().flat_map(|voxel| voxel.to_le_bytes()).collect();
        let storage = Storage { element: Element::Float32, ..PLAIN };
        Volume::new(&bytes, storage, [voxels.len(), 1, 1], STRAIGHT).unwrap().survey()
    };
    assert_eq!(of(&[2.0; 5]), Survey { is_constant: true, is_finite: true });
    assert_eq!(of(&[2.0, 2.0, 3.0]), Survey { is_constant: false, is_finite: true });
    assert_eq!(of(&[2.0, 3.0, f32::NAN]), Survey { is_constant: false, is_finite: false });
    assert_eq!(of(&[f32::INFINITY; 2]), Survey { is_constant: false, is_finite: false });
}

#[test]
fn volumes_and_tables_that_do_not_fit_are_refused() {
    let bytes = [0_u8; 16];
    assert!(Volume::new(&bytes, PLAIN, [2, 2, 2], STRAIGHT).is_ok());
    for shape in [[2, 2, 3], [0, 2, 2], [usize::MAX, 2, 2], [usize::MAX, usize::MAX, 2]] {
        assert!(Volume::new(&bytes, PLAIN, shape, STRAIGHT).is_err(), "{shape:?}");
    }
    assert!(Volume::new(&[], PLAIN, [0, 0, 0], STRAIGHT).is_err());
    let [x, y, _] = STRAIGHT;
    for sources in [[x, y, y], [x, y, Source { axis: 3, is_flipped: true }]] {
        assert!(Volume::new(&bytes, PLAIN, [2, 2, 2], sources).is_err());
    }

    let good = || [(); 3].map(|()| (lines(2, 3), resize(3, 2, 3, Sum::Once)));
    let plan = |change: fn(&mut Lines<f64>, &mut Resize)| {
        let mut tables = good();
        change(&mut tables[1].0, &mut tables[1].1);
        let [(x, rx), (y, ry), (z, rz)] = tables;
        Plan::new(First::Straight([x, y, z]), [rx, ry, rz], TO_ONE, true)
    };
    assert!(plan(|_, _| ()).is_ok());
    assert!(plan(|spacing, _| spacing.index[2] = 2).is_err());
    assert!(plan(|spacing, _| spacing.index.reverse()).is_err());
    assert!(plan(|spacing, _| spacing.length = 0).is_err());
    assert!(plan(|spacing, _| spacing.near.truncate(1)).is_err());
    assert!(plan(|_, resize| resize.kernel.truncate(2)).is_err());
    assert!(plan(|_, resize| resize.lines.length = 4).is_err());
    assert!(plan(|_, resize| resize.lines.index.clear()).is_err());

    let plan = plan(|_, _| ()).unwrap();
    let volume = Volume::new(&bytes, PLAIN, [2, 2, 2], STRAIGHT).unwrap();
    assert!(resample(&volume, &plan, &mut [0.0; 7]).is_err());
    let long = Volume::new(&bytes, PLAIN, [4, 2, 1], STRAIGHT).unwrap();
    assert!(resample(&long, &plan, &mut [0.0; 8]).is_err());
    assert!(space(&volume, &plan, &mut [0.0; 26]).is_err());
    assert!(space(&long, &plan, &mut [0.0; 27]).is_err());
    assert!(Picks::new([2, 2, 2], [vec![0], vec![2], vec![0]]).is_err());
    assert!(Picks::new([2, 2, 2], [vec![0], vec![], vec![0]]).is_err());
    let picks = Picks::new([2, 2, 2], [vec![0], vec![1, 0], vec![1]]).unwrap();
    assert!(picks.copy(&volume, &mut [0.0; 2]).is_ok());
    assert!(picks.copy(&volume, &mut [0.0; 1]).is_err());
    assert!(picks.copy(&long, &mut [0.0; 2]).is_err());
}
