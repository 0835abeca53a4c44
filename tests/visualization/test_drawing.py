"""Pictures and films: the pixels that they show."""

from matplotlib.figure import Figure

from transformers_lvmae.visualization.drawing import save_curves


def test_curves_show_every_figure_that_was_logged_more_than_once(tmp_path, monkeypatch):
    drawn = {}
    savefig = Figure.savefig

    def watched(figure, path):
        for axis in figure.axes:
            if axis.lines:
                drawn[axis.get_title()] = axis.lines[0].get_xydata().tolist()
        savefig(figure, path)

    monkeypatch.setattr(Figure, "savefig", watched)
    log_history = [
        {"loss": 3.0, "epoch": 0.1, "step": 10},
        {"eval_psnr": 20.0, "eval_runtime": 1.0, "epoch": 0.1, "step": 10},
        {"loss": 2.0, "r1_penalty": 0.5, "epoch": 0.2, "step": 20},
        {"eval_psnr": 21.0, "eval_runtime": 1.0, "epoch": 0.2, "step": 20},
        {"train_loss": 2.5, "train_runtime": 9.0, "epoch": 0.2, "step": 20},
    ]
    save_curves(tmp_path / "losses.png", log_history)
    assert drawn == {"loss": [[10, 3], [20, 2]], "eval_psnr": [[10, 20], [20, 21]]}
    assert (tmp_path / "losses.png").stat().st_size > 1000
    save_curves(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").exists()
