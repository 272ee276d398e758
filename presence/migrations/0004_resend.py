from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("presence", "0003_availability")]

    operations = [
        migrations.AlterModelOptions(
            name="deadletter",
            options={
                "default_permissions": ("view", "delete"),
                "managed": False,
                "permissions": (("resend_deadletter", "Can edit a dead letter and send it again"),),
                "verbose_name": "dead letter",
                "verbose_name_plural": "dead letters",
            },
        ),
    ]
