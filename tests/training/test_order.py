from collections import Counter

import pytest

from patchscale.errors import UserError
from patchscale.training.order import TrainingOrder


def keys(order, steps):
    return [key for step in range(steps) for key in order(step)]


def test_without_repeats_an_epoch_has_every_image_once():
    drawn = keys(TrainingOrder(0, 12, 4), 6)
    assert [epoch for epoch, _ in drawn] == [0] * 12 + [1] * 12
    assert sorted(index for _, index in drawn[:12]) == sorted(index for _, index in drawn[12:]) == list(range(12))
    assert drawn[:12] != [(0, index) for _, index in drawn[12:]]


def test_repeats_draw_n_times_n_over_k_images_each_differently():
    repeats, images = 3, 12
    drawn = keys(TrainingOrder(0, images, 4, repeats=repeats), 6)
    for epoch in range(2):
        of_epoch = drawn[epoch * images : (epoch + 1) * images]
        counts = Counter(index for _, index in of_epoch)
        assert len(counts) == images // repeats
        assert set(counts.values()) == {repeats}
        assert [index for _, index in of_epoch[::repeats]] == [index for _, index in of_epoch[repeats - 1 :: repeats]]
    # The first part of a key is what augmentation is drawn from: never the same twice for one image.
    assert len(set(drawn)) == len(drawn)


def test_the_last_image_of_an_epoch_may_be_drawn_less_often():
    drawn = keys(TrainingOrder(0, 10, 5, repeats=3), 2)
    assert sorted(Counter(index for _, index in drawn).values()) == [1, 3, 3, 3]


def test_the_images_of_repeats_are_the_first_of_the_permutation_without():
    plain = [index for _, index in keys(TrainingOrder(7, 12, 4), 3)]
    repeated = [index for _, index in keys(TrainingOrder(7, 12, 4, repeats=3), 3)]
    assert repeated[::3] == plain[:4]


def test_a_batch_depends_on_seed_and_step_alone():
    order = TrainingOrder(3, 10, 4, repeats=2)
    later = [order(step) for step in (9, 2, 5)]
    assert later == [TrainingOrder(3, 10, 4, repeats=2)(step) for step in (9, 2, 5)]
    assert order(2) != TrainingOrder(4, 10, 4, repeats=2)(2)


def test_the_quirk_keeps_an_epoch_to_whole_batches_of_the_rounded_number():
    # 1,000 images: 768 draws, 7 whole batches of 100, of 234 images; as the released sampler counts them.
    order = TrainingOrder(0, 1000, 100, repeats=3, round_to=256)
    drawn = keys(order, 14)
    assert [epoch // 3 for epoch, _ in drawn] == [0] * 700 + [1] * 700
    assert len({index for _, index in drawn[:700]}) == 234


def test_the_quirk_refuses_a_data_set_that_would_be_empty():
    with pytest.raises(UserError, match="leaves nothing of 255 training images"):
        TrainingOrder(0, 255, 32, repeats=3, round_to=256)
