"""Tables on end-to-end exports, int8 in ONNX Runtime, and the web page."""

from .results import latest, machine, one_thread, table

SETS = {"photos": "photographs", "dataset": "imagenette160", "crops": "random crops"}


def end_to_end() -> str:
    result = latest("end-to-end")
    rows = []
    for row in result["rows"]:
        scores = row["score_difference"]
        rows.append(
            [
                row["engine"],
                row["precision"],
                f"{SETS[row['set']]} ({row['images']:,})",
                f"{row['same_label']:.2%}",
                f"{scores['median']:.4f}",
                f"{scores['p99']:.4f}",
            ]
        )
    columns = ("format", "precision", "images", "same label", "score difference: median", "99 % below")
    return "\n".join(table(columns, rows))


def int8_onnx() -> str:
    result = latest("int8-onnx")
    rows = [
        [
            row["engine"],
            row["precision"],
            str(row["batch_size"]),
            f"{1e3 * row['seconds'] / row['batch_size']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    columns = ("engine", "precision", "batch size", "ms per image", "speed relative to ONNX Runtime, unfused fp32")
    return "\n".join([f"On {one_thread(result)}:", "", *table(columns, rows)])


def web() -> str:
    result = latest("web")
    rows = [
        [
            f"`{row['model']}`",
            row["precision"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['page_bytes_gzipped'] / 1e6:.1f}",
        ]
        for row in result["rows"]
    ]
    columns = ("network", "precision", "ms per photograph", "page, MB (gzipped)")
    return "\n".join(
        [f"In headless Chromium {result['chromium']} on {machine(result)}, one thread:", "", *table(columns, rows)]
    )
