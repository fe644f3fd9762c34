"""Runs the whole story into one workdir, skipping the stages that are finished.

python -m experiments.pipeline --config=configs/gridworld.py:quickstart --workdir=runs/quickstart
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments import (
  artifacts,
  collect,
  common,
  control,
  discover,
  evaluate,
  expert,
  figures,
  pretrain,
  probe,
  reinforce,
)

# Only where the expert has to be trained: others demonstrate while the other stages train.
DEMONSTRATION = {'expert': expert.run, 'collect': collect.run}
STAGES = {
  'pretrain': pretrain.run,
  'probe': probe.run,
  'control': control.run,
  'discover': discover.run,
  'reinforce/internal': reinforce.run,
  'reinforce/raw': lambda config, workdir: reinforce.run(config, workdir, 'raw'),
  'evaluate': evaluate.run,
}


def run(config: common.Config, workdir: str) -> dict[str, Any]:
  """Runs what is not finished yet, then writes `summary.json`, the figures and `report.html`."""
  started = time.time()
  results: dict[str, Mapping[str, Any]] = {}
  stages = {**(DEMONSTRATION if common.learns_expert(config) else {}), **STAGES}
  for stage, run_stage in stages.items():
    finished = artifacts.read_result(config, workdir, stage)
    if finished and finished.get('missing'):
      finished = None  # Measured before the stages that it needs.
    logging.info('%s: %s', stage, 'starting' if finished is None else 'finished before, skipped')
    results[stage] = run_stage(config, workdir) if finished is None else finished
  # Floors are there where the expert's action probabilities are known.
  floors = {
    name: results[stage][name]
    for stage, name in (('pretrain', 'bayes_nll'), ('probe', 'bayes_accuracy'))
    if name in results[stage]
  }
  summary = {
    'base_nll': results['pretrain']['nll'],
    'probe_accuracy': results['probe']['best_accuracy'],
    **floors,
    'labelled_success': results['control']['best_success'],
    'switch_f1': results['discover']['f1'],
    'prior_success': results['discover']['prior_success']['success'],
    'internal_rl_success': results['reinforce/internal']['success'],
    'raw_rl_success': results['reinforce/raw']['success'],
    'episodes': results['reinforce/internal']['episodes'],
    'seconds': sum(result['seconds'] for result in results.values()),
  }
  logging.info('pipeline: %.0f s in this call', time.time() - started)
  path = os.path.join(workdir, 'summary.json')
  artifacts.write_json(path, summary)
  logging.info('%s: %s', path, summary)
  figures.run(config, workdir)
  return summary


if __name__ == '__main__':
  common.main(run)
