"""A layer that is inserted with a batch norm, against the plain one."""

import torch
from surgery_nets import HOSTS, patient_of
from torch.nn import functional as F

from esper.tezzeret.surgery import InsertLayer, SurgeryRules, surgery
from esper.tezzeret.surgery.convert import inference
from esper.tezzeret.surgery.forward import Forward


def test_a_layer_that_comes_with_a_norm_is_the_plain_one_and_passes_every_input_in_inference():
    old = patient_of(HOSTS["cnn"]())
    body, learned, report = surgery(
        *old[:2], InsertLayer("new", "block1.conv"), old.samples, SurgeryRules(topology=True)
    )
    assert report.done
    assert set(body.params) - set(old.body.params) == {"new.weight", "new.norm.weight", "new.norm.bias"}
    assert set(body.buffers) - set(old.body.buffers) == {"new.norm.mean", "new.norm.variance"}
    for x in (old.samples.inputs, 3 * old.samples.inputs[:2] + 1):  # the second were not among the samples
        x = x.expand(3, *x.shape)
        before = Forward(inference(old.body.graph))(old.learned.params, old.learned.buffers, x).output
        after = Forward(inference(body.graph))(learned.params, learned.buffers, x).output
        torch.testing.assert_close(after, before, rtol=0, atol=1e-9)

    row, held = ({name: value[1] for name, value in table.items()} for table in (learned.params, learned.buffers))
    mean, variance = held["new.norm.mean"].clone(), held["new.norm.variance"].clone()
    h = old.samples.inputs
    for number, pool in ((0, 2), (1, 1)):
        norm = row[f"block{number}.norm.weight"], row[f"block{number}.norm.bias"]
        h = F.conv2d(h, row[f"block{number}.conv"], padding=1)
        h = F.max_pool2d(F.relu(F.batch_norm(h, None, None, *norm, training=True)), pool)
    kernel = row["new.weight"] + 0.1  # no longer passes on what it sees
    h = F.conv2d(h, kernel, padding=1)
    h = F.relu(F.batch_norm(h, mean, variance, row["new.norm.weight"], row["new.norm.bias"], training=True))
    wanted = F.linear(h.mean((2, 3)), row["block2.weight"], row["block2.bias"])
    x = old.samples.inputs.expand(3, *old.samples.inputs.shape)
    found = Forward(body.graph)(
        {**learned.params, "new.weight": learned.params["new.weight"] + 0.1}, learned.buffers, x
    )
    torch.testing.assert_close(found.output[1], wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.buffers["new.norm.mean"][1], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.buffers["new.norm.variance"][1], variance, rtol=0, atol=1e-12)
