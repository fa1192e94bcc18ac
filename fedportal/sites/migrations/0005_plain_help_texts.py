"""Help texts in plainer words; nothing changes in the database."""

import django.core.validators
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("sites", "0004_short_name_in_words"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AlterField(
            model_name="dataset",
            name="copy_of",
            field=models.ManyToManyField(
                blank=True,
                help_text="Datasets of other sites whose every case this one also holds, for training on pooled data.",
                related_name="copied_in",
                to="sites.dataset",
            ),
        ),
        migrations.AlterField(
            model_name="signin",
            name="address",
            field=models.CharField(blank=True, help_text="Where to confirm the code.", max_length=500),
        ),
        migrations.AlterField(
            model_name="signin",
            name="expires_at",
            field=models.DateTimeField(blank=True, help_text="When the code expires.", null=True),
        ),
        migrations.AlterField(
            model_name="signin",
            name="state",
            field=models.CharField(
                choices=[
                    ("asked", "Asking the site for a code"),
                    ("waiting", "Waiting for confirmation"),
                    ("done", "Signed in"),
                    ("failed", "Failed"),
                ],
                default="asked",
                max_length=8,
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="check_due_at",
            field=models.DateTimeField(
                blank=True,
                default=django.utils.timezone.now,
                editable=False,
                help_text="When the orchestrator checks the site next.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="check_progress",
            field=models.JSONField(
                blank=True, default=list, editable=False, help_text="The steps of the check in progress."
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="checking_since",
            field=models.DateTimeField(
                blank=True, editable=False, help_text="When the check in progress began.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="config",
            field=models.JSONField(
                blank=True, default=dict, help_text="Settings of the connector. Do not put secrets here."
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="contact",
            field=models.EmailField(blank=True, help_text="Whom to email when the site has a problem.", max_length=254),
        ),
        migrations.AlterField(
            model_name="site",
            name="is_pool",
            field=models.BooleanField(
                default=False,
                editable=False,
                help_text="Made by the portal to train on the data of several sites on this machine. It is not a hospital.",
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="name",
            field=models.CharField(help_text="The hospital's name, as people know it.", max_length=120, unique=True),
        ),
        migrations.AlterField(
            model_name="site",
            name="next_try_at",
            field=models.DateTimeField(
                blank=True, editable=False, help_text="When the orchestrator tries again.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="slug",
            field=models.CharField(
                help_text="Used in addresses, file names and logs. It cannot be changed later.",
                max_length=15,
                unique=True,
                validators=[
                    django.core.validators.RegexValidator(
                        "^[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?\\Z",
                        "Use at most 15 lower-case letters, digits and hyphens. Start with a letter, and do not end with a hyphen.",
                    )
                ],
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="stewards",
            field=models.ManyToManyField(
                blank=True,
                help_text="The people responsible for the site's data.",
                related_name="sites",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AlterField(
            model_name="site",
            name="unreached_since",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="Since when the site has not answered the orchestrator.",
                null=True,
            ),
        ),
    ]
