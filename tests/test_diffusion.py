"Pipelines of the classes and layouts of SD 1.5, 2.1 and SDXL, at toy widths with random weights."

from dataclasses import replace

import pytest
import torch

from natrig_nb.generator.diffusion_training import new_autoencoder, new_tokenizer
from natrig_nb.generator.diffusion import Diffusion, denoise_branches, load_diffusion

WORDS = ["a photo of a smiling person with glasses, a beard and long hair", "an old person"]


def text_model(tokenizer, width, kind="CLIPTextModel", **more):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **more,
    )
    return getattr(transformers, kind)(config)


def unet(width, **more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        **more,
    )


def scheduler(kind, prediction):
    import diffusers

    return getattr(diffusers, kind)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        steps_offset=1,
    )


def toy(kind):
    "A pipeline as it is built, in evaluation mode."
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    torch.manual_seed(0)
    tokenizer, vae = new_tokenizer(WORDS), new_autoencoder((8, 16)).eval()
    if kind == "sdxl":
        net = unet(
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
        )
        return StableDiffusionXLPipeline(
            vae,
            text_model(tokenizer, 16),
            text_model(tokenizer, 16, "CLIPTextModelWithProjection", projection_dim=16),
            tokenizer,
            tokenizer,
            net.eval(),
            scheduler("DDIMScheduler", "epsilon"),
            add_watermarker=False,
        )
    kind, prediction, net = {
        "sd15": ("DPMSolverMultistepScheduler", "epsilon", unet(16, attention_head_dim=2)),
        "sd21": (
            "DDIMScheduler",
            "v_prediction",
            unet(16, attention_head_dim=(1, 2), use_linear_projection=True),
        ),
    }[kind]
    return StableDiffusionPipeline(
        vae,
        text_model(tokenizer, 16),
        tokenizer,
        net.eval(),
        scheduler(kind, prediction),
        None,
        None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def pipe(request):
    made = toy(request.param)
    made.set_progress_bar_config(disable=True)
    return made.to(torch.float64)  # random networks amplify rounding errors of single precision


def plain(pipe, prompt, noise, guidance=4.0, **more):
    "What diffusers makes of a prompt and noise."
    n = len(noise)
    x = pipe(
        [prompt] * n,
        guidance_scale=guidance,
        num_inference_steps=6,
        latents=noise.double(),
        output_type="pt",
        height=16,
        width=16,
        **more,
    ).images
    return (2 * x - 1).clamp(-1, 1).float()


def test_lambda_0_is_the_neutral_prompt_and_lambda_1_the_other(pipe):
    G = Diffusion(pipe, "a photo of a person", guidance=4.0, steps=6)
    w = G.sample(2, seed=3)
    smile = "a photo of a smiling person"
    neutral, nothing, whole = (
        x.clamp(-1, 1) for x in denoise_branches(G, w, [(), (G.prompt_edit(smile, weight=0.0),), (G.prompt_edit(smile),)])
    )
    torch.testing.assert_close(
        neutral, plain(pipe, "a photo of a person", w.noise), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(nothing, neutral, atol=0, rtol=0)
    torch.testing.assert_close(whole, plain(pipe, smile, w.noise), atol=1e-5, rtol=0)
    assert (whole - neutral).abs().max() > 1e-3


def test_negative_prompt_and_no_guidance_agree_with_diffusers(pipe):
    w = Diffusion(pipe).sample(2, seed=3)
    with_negative = Diffusion(pipe, "a photo of a person", "a beard", 4.0, 6)(w).clamp(-1, 1)
    torch.testing.assert_close(
        with_negative,
        plain(pipe, "a photo of a person", w.noise, negative_prompt=["a beard"] * 2),
        atol=1e-5,
        rtol=0,
    )
    alone = Diffusion(pipe, "a photo of a person", guidance=1.0, steps=6)(w).clamp(-1, 1)
    torch.testing.assert_close(
        alone, plain(pipe, "a photo of a person", w.noise, 1.0), atol=1e-5, rtol=0
    )


def test_a_late_curve_shares_the_early_steps(pipe):
    G = Diffusion(pipe, steps=6)
    w, late = G.sample(1, seed=0), G.prompt_edit("a photo of an old person", start=0.5)
    together = denoise_branches(G, w, [(), (late,)])
    assert G.evaluations == 2 * (3 + 3 + 3)
    for x, curves in zip(together, [(), (late,)]):
        torch.testing.assert_close(x, denoise_branches(G, w, [curves])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}],
    ids=["whole", "fp16", "sharded"],
)
def test_folders_of_every_layout_load(kind, settings, tmp_path):
    made = toy(kind)
    if "variant" in settings:
        made.to(torch.float16)
    made.save_pretrained(tmp_path / "model", safe_serialization=True, **settings)
    if "max_shard_size" in settings:
        assert list((tmp_path / "model" / "unet").glob("*-of-*.safetensors"))
    G = load_diffusion(tmp_path / "model", steps=2)
    made.to(torch.float32)
    torch.testing.assert_close(
        G(G.sample(1, 0)), Diffusion(made, steps=2)(G.sample(1, 0)), atol=2e-3, rtol=0
    )


def test_a_folder_that_is_no_pipeline_says_so(tmp_path):
    (tmp_path / "cat.txt").write_text("miau")
    with pytest.raises(ValueError, match="expected a pipeline, a folder with model_index.json"):
        load_diffusion(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    toy("sd15").save_pretrained(tmp_path / "model", safe_serialization=False)
    with pytest.raises(FileNotFoundError, match="expected a whole pipeline of safetensors"):
        load_diffusion(tmp_path / "model")


def test_offline_without_weights_says_what_to_download():
    with pytest.raises(
        FileNotFoundError, match="hf download runwayml/stable-diffusion-v1-5.*about 5 GB"
    ):
        load_diffusion("runwayml/stable-diffusion-v1-5")


def test_another_class_of_pipeline_is_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    small = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    DDPMPipeline(small, DDPMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="got DDPMPipeline"):
        load_diffusion(tmp_path / "model")


def test_prompt_sweep_moves_attributes_by_words():
    from natrig_nb.data.captions import prompt
    from natrig_nb.defense.sweep import SweepPoint, measure_support, prompt_faces, sweep_counts
    from natrig_nb.generator.base import render
    from natrig_nb.testing import DiscScores, disc_detector
    from natrig_nb.trigger.base import Target

    G = Diffusion(toy("sd15"), steps=2)
    latents = G.sample(3, 0)
    support = measure_support(DiscScores(), render(G, G.sample(8, 1)))
    terms = {Target("smile"): "smiling", Target("eyeglasses"): "glasses", Target("age", -1): "old"}
    faces = prompt_faces(G, support, terms, n=3)
    smiling, glasses = (G.prompt_edit(prompt([word])) for word in ("smiling", "glasses"))
    for targets, strengths, moved in (
        ((Target("smile"),), (1.0,), [replace(smiling, weight=1.0)]),
        ((Target("eyeglasses", -1),), (0.5,), [replace(glasses, weight=-0.5)]),
        (
            (Target("smile"), Target("eyeglasses")),
            (0.5, 1.5),
            [replace(smiling, weight=0.5), replace(glasses, weight=1.5)],
        ),
    ):
        expected = render(G, latents.add(*moved))
        assert torch.equal(faces.images(SweepPoint(targets, strengths)), expected)
    assert not torch.equal(faces.images(SweepPoint((), ())), expected)
    models = [disc_detector(seed=seed) for seed in range(3)]
    counts = sweep_counts(models[0], models[1:], faces, (1.0,), n_paired=2)
    singles = [point.name for point in counts.points if len(point.targets) == 1]
    assert singles[:2] == ["smile +1 sd", "smile -1 sd"] and len(singles) == 6
    other = prompt_faces(G, support, terms, n=3, seed=1)
    point = SweepPoint((Target("smile"),), (1.0,))
    assert not torch.equal(other.images(point), faces.images(point))
    with pytest.raises(ValueError, match="expected at least one term, got none"):
        prompt_faces(G, support, {})
