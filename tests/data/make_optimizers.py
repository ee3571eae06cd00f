"""Makes tests/data/optimizers.json: what PyTorch's and Keras's optimisers and schedules do.

    KERAS_BACKEND=torch python tests/data/make_optimizers.py     needs torch and keras 3

The task is least squares: `x` [S, I] and `y` [S, O], the mean of (x wT - y)^2 over S*O, from `w` [O, I], by the whole of it at each of
50 steps, in 64 bits. `optimizers` holds w after the last step by name; `schedules` the factor of the learning rate at each step.
"""
import json
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import torch

S, I, O, STEPS = 12, 5, 3, 50
torch.manual_seed(5)
x, y, w0 = torch.randn(S, I), torch.randn(S, O), torch.randn(O, I) * 0.5
keras.config.set_floatx("float64")


def by_torch(make, after=None):
    w = w0.double().clone().requires_grad_()
    optimizer = make([w])
    for step in range(STEPS):
        loss = ((x.double() @ w.t() - y.double()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        if after:
            after(w, step, optimizer)
        else:
            optimizer.step()
    return w, optimizer


def by_keras(optimizer):
    w = keras.Variable(w0.double().numpy(), dtype="float64")
    optimizer.build([w])
    for _ in range(STEPS):
        error = x.double() @ w.value.detach().t() - y.double()
        optimizer.apply([2 / (S * O) * error.t() @ x.double()], [w])
    optimizer.finalize_variable_values([w])
    return torch.as_tensor(keras.ops.convert_to_numpy(w))


def clipped(kind, most):
    def after(w, step, optimizer):
        if kind == "value":
            torch.nn.utils.clip_grad_value_([w], most)
        else:
            torch.nn.utils.clip_grad_norm_([w], most)
        optimizer.step()
    return after


def accumulated(w, step, optimizer):
    """Every third step, by the mean of three gradients."""
    accumulated.sum = w.grad.clone() + (0 if step % 3 == 0 else accumulated.sum)
    if step % 3 == 2:
        w.grad.copy_(accumulated.sum / 3)
        optimizer.step()


T, K = torch.optim, keras.optimizers
torch_made = dict(
    sgd=lambda p: T.SGD(p, 0.05), sgd_momentum=lambda p: T.SGD(p, 0.02, momentum=0.9), sgd_nesterov=lambda p: T.SGD(p, 0.02, momentum=0.9, nesterov=True),
    sgd_decay=lambda p: T.SGD(p, 0.05, momentum=0.5, weight_decay=0.1), adam=lambda p: T.Adam(p, 0.005), adam_l2=lambda p: T.Adam(p, 0.005, weight_decay=0.1),
    adamw=lambda p: T.AdamW(p, 0.005, weight_decay=0.1), amsgrad=lambda p: T.Adam(p, 0.01, amsgrad=True), nadam=lambda p: T.NAdam(p, 0.005),
    adamax=lambda p: T.Adamax(p, 0.005), rmsprop=lambda p: T.RMSprop(p, 0.002), rmsprop_centered=lambda p: T.RMSprop(p, 0.002, momentum=0.5, centered=True),
    adagrad=lambda p: T.Adagrad(p, 0.03), adagrad_decay=lambda p: T.Adagrad(p, 0.03, lr_decay=0.1, initial_accumulator_value=0.2), adadelta=lambda p: T.Adadelta(p, 1.0),
)
optimizers = {f"torch_{name}": by_torch(make)[0] for name, make in torch_made.items()}
w, asgd = by_torch(lambda p: T.ASGD(p, 0.1, lambd=0.01, t0=20))
optimizers |= {"torch_asgd": w, "torch_asgd_average": asgd.state[w]["ax"]}
optimizers["torch_clip_value"] = by_torch(torch_made["sgd"], clipped("value", 0.05))[0]
optimizers["torch_clip_norm"] = by_torch(torch_made["adam"], clipped("norm", 0.1))[0]
optimizers["torch_accumulate"] = by_torch(torch_made["adam"], accumulated)[0]
keras_made = dict(
    sgd_momentum=K.SGD(0.02, momentum=0.9), sgd_nesterov=K.SGD(0.02, momentum=0.9, nesterov=True), adam=K.Adam(0.005), amsgrad=K.Adam(0.01, amsgrad=True),
    adamw=K.AdamW(0.005, weight_decay=0.1), nadam=K.Nadam(0.005), adamax=K.Adamax(0.005), rmsprop=K.RMSprop(0.002), rmsprop_centered=K.RMSprop(0.002, momentum=0.5, centered=True),
    adagrad=K.Adagrad(0.03), adadelta=K.Adadelta(1.0), lion=K.Lion(0.01), lion_decay=K.Lion(0.01, weight_decay=0.1), clip_value=K.SGD(0.05, clipvalue=0.05),
    clip_norm=K.SGD(0.05, clipnorm=0.1), ema=K.SGD(0.05, use_ema=True, ema_momentum=0.9), schedule=K.SGD(K.schedules.CosineDecay(0.1, 40, alpha=0.1), momentum=0.9),
)
optimizers |= {f"keras_{name}": by_keras(made) for name, made in keras_made.items()}


def rates(make, epochs=None):
    optimizer = T.SGD([torch.zeros(1)], 1.0)
    schedule, all = make(optimizer), []
    for step in range(STEPS):
        all.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([] if epochs is None else [epochs[step]]))
    return all


L = T.lr_scheduler
losses = [3, 2, 1, 1, 1, 1, 1, 0.5, 0.5, 0.6, 0.7, 0.8] + [0.9] * 38
schedules = dict(
    step=rates(lambda o: L.StepLR(o, 7, 0.5)), milestones=rates(lambda o: L.MultiStepLR(o, [5, 9, 30], 0.3)), exponential=rates(lambda o: L.ExponentialLR(o, 0.9)),
    cosine=rates(lambda o: L.CosineAnnealingLR(o, 50, 0.1)), restarts=rates(lambda o: L.CosineAnnealingWarmRestarts(o, 6, 2, 0.05)),
    warmup=rates(lambda o: L.LinearLR(o, 0.1, 1.0, 10)), one_cycle=rates(lambda o: L.OneCycleLR(o, 1.0, total_steps=51, pct_start=0.3, div_factor=20, final_div_factor=100)),
    sequence=rates(lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.2, 1.0, 5), L.CosineAnnealingLR(o, 45)], [5])), plateau=rates(lambda o: L.ReduceLROnPlateau(o, factor=0.5, patience=2, cooldown=1, min_lr=0.1), losses),
    product=rates(lambda o: L.ChainedScheduler([L.StepLR(o, 7, 0.5), L.ExponentialLR(o, 0.95)])),
)
KS = K.schedules
kept = dict(keras_exponential=KS.ExponentialDecay(1.0, 10, 0.5), keras_cosine=KS.CosineDecay(1.0, 30, alpha=0.2), keras_restarts=KS.CosineDecayRestarts(1.0, 8, t_mul=1.5, m_mul=0.8, alpha=0.1))
schedules |= {name: [float(schedule(step)) for step in range(STEPS)] for name, schedule in kept.items()}
flat = lambda t: t.detach().double().flatten().tolist()
whole = dict(x=flat(x), y=flat(y), w=flat(w0), losses=losses, optimizers={k: flat(v) for k, v in optimizers.items()}, schedules=schedules)
path = Path(__file__).resolve().parent / "optimizers.json"
path.write_text(json.dumps(whole).replace("], ", "],\n").replace("{", "{\n") + "\n")
print(len(optimizers), "optimisers,", len(schedules), "schedules")
