"""Either sequence model in either world, by nothing but the config.

The presets have the paper's pairs. A transformer on the ant is in `test_ant_pipeline`, where there
are demonstrations to train it on.
"""

import numpy as np

from configs import gridworld
from experiments import artifacts, discover, pretrain, reinforce
from internal_rl.training import metrics
from internal_rl.training.state import named_leaves


def assert_learns_and_acts(config, workdir, part):
  """Pretrains a model that has this part, discovers, and reinforces codes and raw actions."""
  for stage in ('pretrain', 'discover', 'reinforce'):
    config[stage].update(steps=2, updates_per_call=2, eval_every=0, checkpoint_every=0)
  for stage in ('pretrain', 'discover'):
    config[stage].optimiser = 'adamw'  # Muon takes longer to compile.
  config.pretrain.milestones = ()
  config.model.init_scale = 1.0  # What was seen before matters from the start.
  config.discover.alphas = (0.1,)
  config.reinforce.update(
    epochs=1, minibatches=1, learning_rates=(1e-3,), raw_learning_rates=(1e-3,)
  )
  pretrained = pretrain.run(config, workdir)
  assert any(part in name for name in named_leaves(artifacts.base_params(config, workdir)))
  discovered = discover.run(config, workdir)
  assert np.isfinite([pretrained['nll'], discovered['hard_nll'], discovered['kl']]).all()
  for method in ('internal', 'raw'):
    (run,) = reinforce.run(config, workdir, method)['runs']
    assert sum(map(sum, run['ends'].values())) == run['episodes'] == config.evaluate.episodes
  # What acted, step by step, is what is trained, all steps at once.
  rows = metrics.read_jsonl(f'{workdir}/reinforce/raw/lr_0.001_seed_0/metrics.jsonl')
  (row,) = [row for row in rows if 'train/approx_kl' in row]
  assert abs(row['train/approx_kl']) < 1e-5
  assert row['train/clipped'] == 0


def test_a_hawk_learns_and_acts_in_the_gridworld(tmp_path):
  config = gridworld.get_config('smoke')
  config.model.kind = 'hawk'
  assert_learns_and_acts(config, str(tmp_path), 'recurrence')
