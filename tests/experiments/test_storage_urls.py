"""Passwords of storages are masked in whatever is shown."""

import re
from pathlib import Path

import optuna
import pytest

from modeling_alibi_gpt.experiments import storage as study_storage
from modeling_alibi_gpt.experiments.storage_urls import shown_url, without_password
from modeling_alibi_gpt.experiments.study import SharedStudy


@pytest.mark.parametrize(
    "url",
    [
        *("oracle://me:s3cret@host/name", "nonsense://me:s3cret@host/name", "postgresql://me:s3cret@host:port/name"),
        *("postgresql://me:at@s3cret@host/name", "nonsense://host/name?user=me&password=s3cret"),
        *("nonsense://me:%733cret@host/name", "postgresql+nonsense://:s3cret@host"),
    ],
)
def test_a_password_is_never_shown(url: str, monkeypatch: pytest.MonkeyPatch):
    def repeat_the_url(storage: str, *args: object, **kwargs: object):
        raise OSError(f"no connection to {storage} with s3cret")

    for refuse in (study_storage.LastingStorage, repeat_the_url):
        monkeypatch.setattr(study_storage, "LastingStorage", refuse)
        with pytest.raises(ValueError, match=r"storage \w+.*://.*\*\*\*.* cannot be opened as a study") as refusal:
            study_storage.open_storage(url)
        assert not re.search("s3cret|%733cret", str(refusal.value))


def test_a_password_is_not_shown_where_a_study_is_of_another_objective(tmp_path: Path):
    storage = study_storage.open_storage(f"sqlite:///{tmp_path}/study.db")
    other = optuna.create_study(study_name="beta", storage=storage, direction="maximize")
    storage.url = "postgresql://me:s3cret@host/db"
    with pytest.raises(ValueError, match=r"in postgresql://me:\*\*\*@host/db belongs to another objective"):
        SharedStudy(other, storage, {}).claim()


@pytest.mark.parametrize("url", ["sqlite:///a/b.db", "postgresql://host:5432/db", "mysql+pymysql://me@host/db?a=b"])
def test_what_has_no_password_is_shown_as_it_is(url: str):
    assert shown_url(url) == url
    assert without_password(f"no {url}", url) == f"no {url}"
