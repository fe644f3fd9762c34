"""Results of a run that went well, made up: what the figures, the report and the diagnosis read."""

import numpy as np

from configs.gridworld import get_config


def header(**values):
  return {
    **values,
    'seed': 0,
    'commit': '0123456789ab',
    'device': 'cpu x 1',
    'jax': '0.10.2',
    'date': '2026-01-02T03:04:05+00:00',
    'seconds': 90.0,
    'config': get_config('small').to_dict(),
  }


def outcome(success, episodes=2048):
  return {
    'success': success,
    'error': float(np.sqrt(success * (1 - success) / episodes)),
    'episodes': episodes,
    'ends': ends(round(success * episodes), episodes),
  }


def ends(won, episodes):
  lost = episodes - won
  found = {'success': [0, 0, 0, won], 'wrong colour': [lost // 2, 0, lost - lost // 2, 0]}
  return {name: counts for name, counts in found.items() if any(counts)}


def curve(top, steps=40, seed=0):
  noise = np.random.default_rng(seed).normal(0, 0.01, steps)
  episodes = np.linspace(512, 256_000, steps)
  rise = top / (1 + np.exp(-(episodes - 90_000 - 20_000 * seed) / 20_000))
  success = np.clip(rise + noise * top, 0, 1)
  return [
    {'episodes': float(e), 'success': float(s)} for e, s in zip(episodes, success, strict=True)
  ]


def reinforced(method, top, first, seeds=3):
  runs = [
    {
      'learning_rate': rate,
      'seed': seed,
      'initial_success': first,
      **outcome(top * (1 - 0.05 * seed) * share),
      'curve': curve(top * share, seed=seed),
    }
    for rate, share in ((3e-4, 1.0), (1e-3, 0.5))
    for seed in range(seeds)
  ]
  success = float(np.mean([run['success'] for run in runs[:seeds]]))
  return header(
    method=method,
    learning_rate=3e-4,
    success=success,
    initial_success=first,
    episodes=256_000,
    runs=runs,
  )


def member(alpha, kl, nll, f1, switches):
  return {
    'alpha': alpha,
    'seed': 0,
    'kl': kl,
    'nll': nll,
    'hard_nll': nll + 0.005,
    'f1': f1,
    'f1_tolerance_0': f1,
    'f1_tolerance_1': min(1.0, f1 + 0.02),
    'switches': switches,
    'true_switches': 2.0,
    'undecided_share': 0.01,
    'subgoal_decoded': round(0.9 * f1, 2),
    'subgoal_majority': 0.3,
    'prior_success': outcome(0.02),
  }


def results():
  """Returns `result.json` of every stage, by stage."""
  steps = list(range(0, 20_001, 1000))
  nll = [0.27 + 1.1 * np.exp(-step / 3000) for step in steps]
  members = [
    member(0.05, 0.4, 0.18, 0.4, 8.0),
    member(0.1, 0.25, 0.2, 0.97, 2.1),
    member(0.17, 0.1, 0.25, 0.2, 0.4),
  ]
  bayes_by_step = [0.25 + 0.6 * (1 - 0.9**t) for t in range(20)] + [float('nan')] * 4
  by_step = [[0.9 * value for value in bayes_by_step]] * 5
  return {
    'pretrain': header(
      nll=0.271,
      bayes_nll=0.262,
      goal_nll=0.15,
      nll_by_stage=[0.55, 0.18, 0.35, 0.16, 0.36, 0.15],
      bayes_nll_by_stage=[0.54, 0.17, 0.34, 0.15, 0.35, 0.15],
      goal_nll_by_stage=[0.15] * 6,
      curve={'step': steps, 'eval/nll': nll, 'eval/bayes_nll': [0.262] * len(steps)},
    ),
    'probe': header(
      best_accuracy=0.7,
      best_layer=2,
      accuracy=[0.36, 0.52, 0.7, 0.69, 0.66],
      bayes_accuracy=0.78,
      accuracy_by_step=by_step,
      bayes_accuracy_by_step=bayes_by_step,
      milestones={'steps': [1000, 4000], 'accuracy': [[0.3, 0.32, 0.4], [0.36, 0.52, 0.7]]},
    ),
    'control': header(
      best_success=0.4,
      best_layer=3,
      layers=[
        {
          'layer': i,
          'pretraining': outcome(0.3 + 1.3 * s),
          'selection': outcome(s),
          'post_training': outcome(s),
          'amplified': [
            {'gain': gain, 'selection': outcome(chosen * s), 'post_training': outcome(found * s)}
            for gain, chosen, found in ((1.5, 2.0, 1.4), (2.0, 1.5, 1.8))
          ],
        }
        for i, s in enumerate((0.01, 0.21, 0.5, 0.4, 0.12))
      ],
    ),
    'discover': header(**members[1], selected=1, members=members, curve=[]),
    'evaluate': header(
      floors={'bayes_nll': 0.262, 'goal_nll': 0.15, 'length_mean': 15.0},
      expert_success={'pretraining': outcome(1.0), 'post_training': outcome(1.0)},
      base_success={'pretraining': outcome(0.06), 'post_training': outcome(0.0)},
      replay_success={'pretraining': outcome(0.7), 'post_training': outcome(0.5)},
      goal_code_success={
        'pretraining': outcome(0.6),
        'post_training': outcome(0.3),
        'lengthened': [
          {'gain': gain, 'pretraining': outcome(seen), 'post_training': outcome(unseen)}
          for gain, seen, unseen in ((1.5, 0.62, 0.45), (2.0, 0.5, 0.4))
        ],
      },
      code_meaning={
        'subgoal': {'accuracy': 0.9, 'majority': 0.26},
        'goal_cell': {'accuracy': 0.3, 'majority': 0.05},
        'first_action': {'accuracy': 0.4, 'majority': 0.26},
      },
    ),
    'reinforce/internal': reinforced('internal', 0.75, 0.02),
    'reinforce/raw': reinforced('raw', 0.004, 0.0005),
  }
