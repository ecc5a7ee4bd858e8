"""What every page stands in: page configuration and navigation, nothing else."""

from pathlib import Path

import streamlit as st

from pages.parts import owner

HERE = Path(__file__).parent

st.set_page_config(page_title="Force Delta", page_icon=str(HERE / "static" / "icon.png"), layout="wide")
# Groups, since Streamlit's bar hides what does not fit in a window of some widths: all of these fit wherever there is a bar.
page = st.navigation(
    {
        "": [
            st.Page("pages/score.py", title="Score", icon=":material/speed:", default=True),
            st.Page("pages/dynamics.py", title="Dynamics", icon=":material/animation:", url_path="dynamics"),
            st.Page("pages/adversarial.py", title="Adversarial", icon=":material/target:", url_path="adversarial"),
            st.Page("pages/ensemble.py", title="Ensemble", icon=":material/diversity_3:", url_path="ensemble"),
            st.Page("pages/screen.py", title="Screen", icon=":material/filter_list:", url_path="screen"),
            st.Page("pages/runs.py", title="Runs", icon=":material/history:", url_path="runs"),
        ],
        "Model": [
            st.Page("pages/report.py", title="Report", icon=":material/rule:", url_path="report"),
            st.Page("pages/validate.py", title="Validate", icon=":material/fact_check:", url_path="validate"),
            st.Page("pages/finetune.py", title="Fine-tune", icon=":material/model_training:", url_path="finetune"),
            st.Page("pages/models.py", title="Models", icon=":material/memory:", url_path="models"),
        ],
        "Method": [
            st.Page("pages/reproduce.py", title="Reproduce", icon=":material/science:", url_path="reproduce"),
            st.Page("pages/how_it_works.py", title="How it works", icon=":material/menu_book:", url_path="how"),
        ],
    },
    position="top",
)
owner.account()
page.run()
